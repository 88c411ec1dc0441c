"""Training of the router on labelled prompts, in a minute or two on two cores."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from .gate import calibrate, gate_score
from .model import RouterModel, RouterShape, flatten
from .router import Router

Prompt = Sequence[int]


@dataclass(frozen=True)
class RouterSettings:
    """What decides the result of a training, besides data."""

    epochs: int = 4
    batch_size: int = 64
    learning_rate: float = 2e-3
    held_out: float = 0.1
    false_rejection: float = 0.01
    crop_share: float = 0.3
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

    A share of the training prompts is cropped to a random stretch, so that parts of a prompt are known too.
    The gate's threshold and the metrics come from held-out prompts. ``card`` goes into ``router.json``.
    """
    torch.manual_seed(settings.seed)
    names = sorted(set(labels))
    targets = torch.tensor([names.index(label) for label in labels])
    train, held = _split(len(prompts), settings)
    model = RouterModel(RouterShape(vocab_size, len(names)))
    start = time.monotonic()
    _fit(model, [prompts[i] for i in train], targets[train], settings, progress)
    logits = _logits(model, [prompts[i] for i in held])
    metrics = {
        "train_prompts": len(train),
        "held_out_prompts": len(held),
        "held_out_accuracy": float((logits.argmax(1) == targets[held]).float().mean()),
        "false_rejection": settings.false_rejection,
        "seconds": round(time.monotonic() - start, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    card |= {
        "labels": names,
        "shape": model.shape.to_json(),
        "gate_threshold": calibrate(gate_score(logits), settings.false_rejection),
        "settings": asdict(settings),
        "metrics": metrics,
    }
    return Router(model, card)


def _split(count: int, settings: RouterSettings) -> tuple[list[int], list[int]]:
    order = list(range(count))
    random.Random(settings.seed).shuffle(order)
    held = max(1, round(settings.held_out * count))
    return order[held:], order[:held]


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
def _logits(model: RouterModel, prompts: Sequence[Prompt]) -> torch.Tensor:
    return torch.cat([model(*flatten(prompts[i : i + 1024])) for i in range(0, len(prompts), 1024)])
