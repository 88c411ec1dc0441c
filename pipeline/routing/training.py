"""Train the MLP router on labelled prompts, in a minute or two on two cores."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize

from .calibration import expected_calibration_error, fit_temperature, gate_score, gate_thresholds
from .centroids import CentroidHead, centroid
from .mlp_router import KnownPrompts, MlpRouter
from .network import RouterNetwork, RouterShape, flatten_prompts

Prompt = Sequence[int]


@dataclass(frozen=True)
class RouterSettings:
    """Settings that decide the result of a training, besides the data.

    ``held_out``: share of the prompts that temperature, gate and metrics are measured on. ``crop_share``: share of the
    training prompts that are cropped to a random stretch, so that the router also knows parts of prompts.
    ``references``: training prompts of each class that the gate compares with.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    held_out: float
    crop_share: float
    references: int
    seed: int


def train_router(
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    vocab_size: int,
    settings: RouterSettings,
    card: dict[str, Any],
    progress: Callable[[str], None],
) -> MlpRouter:
    """Train a router with cross-entropy on prompts (token ids) and their adapters' names.

    Temperature, gate and metrics come from held-out prompts. ``card`` goes into ``router.json``.
    """
    torch.manual_seed(settings.seed)
    names = sorted(set(labels))
    targets = torch.tensor([names.index(label) for label in labels])
    order = list(range(len(prompts)))
    random.Random(settings.seed).shuffle(order)
    held_size = max(1, round(settings.held_out * len(order)))
    train, held = order[held_size:], order[:held_size]
    model = RouterNetwork(RouterShape(vocab_size, len(names)))
    start = time.monotonic()
    _fit(model, [prompts[i] for i in train], targets[train], settings, progress)
    model = model.half().float()  # as saved: everything below must be measured on the same weights
    embedded = _embed(model, [prompts[i] for i in train])
    held_out = _embed(model, [prompts[i] for i in held])
    # The first prompts of each class; their order is random already.
    by_class = [(targets[train] == c).nonzero().flatten()[: settings.references] for c in range(len(names))]
    chosen = torch.cat(by_class)
    known = KnownPrompts(normalize(embedded[chosen], dim=1), targets[train][chosen], held_out, targets[held])
    with torch.inference_mode():
        logits = model.classify(held_out)
    card |= {
        "labels": names,
        "shape": asdict(model.shape),
        "temperature": fit_temperature(logits, known.held_out_targets),
        "gate_thresholds": gate_thresholds(gate_score(held_out.double(), known.references.double())),
        "settings": asdict(settings),
        "metrics": {
            "train_prompts": len(train),
            "held_out_prompts": len(held),
            **_metrics(logits, known.held_out_targets),
            "seconds": round(time.monotonic() - start, 1),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    }
    # A class with few prompts may have no training prompt: then its held-out ones give the centroid.
    centroids = [centroid(embedded[i] if len(i) else held_out[targets[held] == c]) for c, i in enumerate(by_class)]
    return MlpRouter(model, known, CentroidHead.of(torch.stack(centroids)), card)


def _metrics(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Held-out accuracy and calibration error; the temperature is fitted on one half and measured on the other."""
    half = max(1, len(logits) // 2)
    other = slice(half, None) if len(logits) > half else slice(None)
    scaled = logits[other] / fit_temperature(logits[:half], targets[:half])
    return {
        "held_out_accuracy": float((logits.argmax(1) == targets).float().mean()),
        "ece": expected_calibration_error(logits[other].softmax(1), targets[other]),
        "ece_scaled": expected_calibration_error(scaled.softmax(1), targets[other]),
    }


def _fit(
    model: RouterNetwork,
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
            logits = model(*flatten_prompts([_cropped(prompts[i], settings.crop_share, rng) for i in batch]))
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
def _embed(model: RouterNetwork, prompts: Sequence[Prompt]) -> torch.Tensor:
    return torch.cat([model.embed(*flatten_prompts(prompts[i : i + 1024])) for i in range(0, len(prompts), 1024)])
