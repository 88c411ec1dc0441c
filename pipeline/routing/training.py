"""Training of the router on labelled prompts, in a minute or two on two cores."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize

from .added import CentroidHead, centroid
from .calibration import expected_calibration_error, fit_temperature
from .gate import gate_score, thresholds
from .model import RouterModel, RouterShape, flatten
from .router import Known, Router

Prompt = Sequence[int]


@dataclass(frozen=True)
class RouterSettings:
    """What decides the result of a training, besides data.

    ``held_out``: share of the prompts that temperature, gate and metrics are measured on. ``crop_share``: share of the
    training prompts that are cropped to a random stretch, so that parts of a prompt are known too. ``references``:
    training prompts of each class that the gate compares with.
    """

    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 2e-3
    held_out: float = 0.1
    crop_share: float = 0.3
    references: int = 64
    seed: int = 0


def train_router(
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    vocab_size: int,
    settings: RouterSettings,
    card: dict[str, Any],
    progress: Callable[[str], None],
) -> Router:
    """Train a router on prompts (token ids) and their adapters' names with cross-entropy.

    Temperature, gate and metrics come from held-out prompts. ``card`` goes into ``router.json``.
    """
    torch.manual_seed(settings.seed)
    names = sorted(set(labels))
    targets = torch.tensor([names.index(label) for label in labels])
    train, held = _split(len(prompts), settings)
    model = RouterModel(RouterShape(vocab_size, len(names)))
    start = time.monotonic()
    _fit(model, [prompts[i] for i in train], targets[train], settings, progress)
    model = model.half().float()  # as it is saved: what follows must be measured on the same weights
    embedded = _embed(model, [prompts[i] for i in train])
    held_out = _embed(model, [prompts[i] for i in held])
    places = [_some(targets[train], c, settings) for c in range(len(names))]
    shown = torch.cat(places)
    known = Known(normalize(embedded[shown], dim=1), targets[train][shown], held_out, targets[held])
    with torch.inference_mode():
        logits = model.classify(held_out)
    card |= {
        "labels": names,
        "shape": model.shape.to_json(),
        "temperature": fit_temperature(logits, known.held_out_targets),
        "gate_thresholds": thresholds(gate_score(held_out.double(), known.references.double())),
        "settings": asdict(settings),
        "metrics": {
            "train_prompts": len(train),
            "held_out_prompts": len(held),
            **_metrics(logits, known.held_out_targets),
            "seconds": round(time.monotonic() - start, 1),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    }
    # A class may have no training prompt when it has few: then its held-out ones stand for it.
    centroids = [centroid(embedded[p] if len(p) else held_out[targets[held] == c]) for c, p in enumerate(places)]
    return Router(model, known, CentroidHead.of(torch.stack(centroids)), card)


def _split(count: int, settings: RouterSettings) -> tuple[list[int], list[int]]:
    order = list(range(count))
    random.Random(settings.seed).shuffle(order)
    held = max(1, round(settings.held_out * count))
    return order[held:], order[:held]


def _some(targets: torch.Tensor, chosen: int, settings: RouterSettings) -> torch.Tensor:
    """Places of some prompts of one class; their order is random already."""
    return (targets == chosen).nonzero().flatten()[: settings.references]


def _metrics(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Held-out accuracy and calibration; the temperature is fitted on one half and its error measured on the other."""
    half = max(1, len(logits) // 2)
    other = slice(half, None) if len(logits) > half else slice(None)
    scaled = logits[other] / fit_temperature(logits[:half], targets[:half])
    return {
        "held_out_accuracy": float((logits.argmax(1) == targets).float().mean()),
        "ece": expected_calibration_error(logits[other].softmax(1), targets[other]),
        "ece_scaled": expected_calibration_error(scaled.softmax(1), targets[other]),
    }


def _fit(
    model: RouterModel,
    prompts: list[Prompt],
    targets: torch.Tensor,
    settings: RouterSettings,
    progress: Callable[[str], None],
) -> None:
    rng = random.Random(settings.seed)
    steps = settings.epochs * -(-len(prompts) // settings.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    for epoch in range(1, settings.epochs + 1):
        order = list(range(len(prompts)))
        rng.shuffle(order)
        total = 0.0
        for start in range(0, len(order), settings.batch_size):
            batch = order[start : start + settings.batch_size]
            logits = model(*flatten([_cropped(prompts[i], settings.crop_share, rng) for i in batch]))
            loss = cross_entropy(logits, targets[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        progress(f"epoch {epoch}/{settings.epochs} loss {total / len(order):.4f}")


def _cropped(prompt: Prompt, share: float, rng: random.Random) -> Prompt:
    if rng.random() >= share or len(prompt) < 16:
        return prompt
    size = rng.randint(8, len(prompt))
    start = rng.randint(0, len(prompt) - size)
    return prompt[start : start + size]


@torch.inference_mode()
def _embed(model: RouterModel, prompts: Sequence[Prompt]) -> torch.Tensor:
    return torch.cat([model.embed(*flatten(prompts[i : i + 1024])) for i in range(0, len(prompts), 1024)])
