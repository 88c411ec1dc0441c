"""Train the MLP router on labelled prompts, in a minute or two on two cores."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from pipeline.records import Prompt

from .calibration import fit_temperature, gate_score, gate_thresholds, held_out_metrics
from .centroids import CentroidHead, centroid
from .forms import in_forms
from .mlp_router import HeldOut, MlpRouter
from .network import RouterNetwork, RouterShape, flatten_prompts

Encode = Callable[[Sequence[Prompt]], list[list[int]]]


@dataclass(frozen=True)
class RouterSettings:
    """Settings that decide the result of a training, besides the data.

    ``held_out``: share of the prompts that temperature, gate and metrics are measured on. ``forms``: other forms
    (`pipeline/routing/forms.py`) in which an epoch sees each prompt, besides the prompt as it is. ``examples``: prompts
    of each class whose mean is its centroid, for the gate and for added classes.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    held_out: float
    forms: int
    examples: int
    seed: int


def train_router(
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    encode: Encode,
    vocab_size: int,
    settings: RouterSettings,
    card: dict[str, Any],
    progress: Callable[[str], None],
) -> MlpRouter:
    """Train a router with cross-entropy on prompts and the names of their adapters; ``encode`` gives token ids.

    Temperature, gate and metrics come from held-out prompts, each as an epoch of the training sees it.
    ``card`` goes into ``router.json``.
    """
    torch.manual_seed(settings.seed)
    start = time.monotonic()
    rng = random.Random(settings.seed)
    names = sorted(set(labels))
    order = list(range(len(prompts)))
    rng.shuffle(order)
    prompts, targets = [prompts[i] for i in order], torch.tensor([names.index(labels[i]) for i in order])
    size = max(1, round(settings.held_out * len(order)))
    model = RouterNetwork(RouterShape(vocab_size, len(names)))
    _fit(model, prompts[size:], targets[size:], encode, settings, progress)
    model = model.half().float()  # as saved: everything below must be measured on the same weights
    held_out = _embed(model, encode(in_forms(prompts[:size], settings.forms, rng)))
    held_out = held_out.reshape(-1, size, model.shape.embedding)
    with torch.inference_mode():
        logits = model.classify(held_out)  # [views x held out x classes]
    centroids = _centroids(model, prompts, targets, size, encode, settings, rng)
    card |= {
        "labels": names,
        "shape": asdict(model.shape),
        "temperature": fit_temperature(logits.flatten(0, 1), targets[:size].repeat(len(logits))),
        # On prompts as they are: some forms leave no trace of the task, and would decide the thresholds alone.
        "gate_thresholds": gate_thresholds(gate_score(held_out[0].double(), centroids.double())),
        "settings": asdict(settings),
        "metrics": {
            "train_prompts": len(prompts) - size,
            "held_out_prompts": size,
            **held_out_metrics(logits[[0, -1]].flatten(0, 1), targets[:size].repeat(2)),
            "seconds": round(time.monotonic() - start, 1),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    }
    return MlpRouter(model, HeldOut(held_out[0], targets[:size]), CentroidHead.of(centroids), card)


def _centroids(
    model: RouterNetwork,
    prompts: list[Prompt],
    targets: torch.Tensor,
    held_size: int,
    encode: Encode,
    settings: RouterSettings,
    rng: random.Random,
) -> torch.Tensor:
    """Centroids [classes x E] of training prompts, each as an epoch sees it.

    The first ``held_size`` prompts are not among them, except for a class that has no others.
    """
    found = []
    for index in range(model.shape.classes):
        own = (targets == index).nonzero().flatten()
        trained = own[own >= held_size]
        texts = [prompts[i] for i in (trained if len(trained) else own)[: settings.examples]]
        found.append(centroid(_embed(model, encode(in_forms(texts, settings.forms, rng)))))
    return torch.stack(found)


def _fit(
    model: RouterNetwork,
    texts: list[Prompt],
    targets: torch.Tensor,
    encode: Encode,
    settings: RouterSettings,
    progress: Callable[[str], None],
) -> None:
    rng = random.Random(settings.seed)
    targets = targets.repeat(1 + settings.forms)
    steps = settings.epochs * -(-len(targets) // settings.batch_size)
    # Fused: each step updates the whole embedding, and that is most of its time.
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    for epoch in range(1, settings.epochs + 1):
        prompts = encode(in_forms(texts, settings.forms, rng))
        order = list(range(len(prompts)))
        rng.shuffle(order)
        total = 0.0
        for start in range(0, len(order), settings.batch_size):
            batch = order[start : start + settings.batch_size]
            loss = cross_entropy(model(*flatten_prompts([prompts[i] for i in batch])), targets[batch])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(batch)
        progress(f"epoch {epoch}/{settings.epochs} loss {total / len(order):.4f}")


@torch.inference_mode()
def _embed(model: RouterNetwork, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.cat([model.embed(*flatten_prompts(prompts[i : i + 1024])) for i in range(0, len(prompts), 1024)])
