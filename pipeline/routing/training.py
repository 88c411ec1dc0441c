"""Train the MLP router on labelled prompts, in a minute or two on two cores."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy, normalize

from .calibration import fit_temperature, gate_score, gate_thresholds, held_out_metrics
from .centroids import CentroidHead, centroid
from .forms import vary
from .mlp_router import KnownPrompts, MlpRouter
from .network import RouterNetwork, RouterShape, flatten_prompts

Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class RouterSettings:
    """Settings that decide the result of a training, besides the data.

    ``held_out``: share of the prompts that temperature, gate and metrics are measured on. ``forms``: share of the
    training prompts that an epoch sees in another form (`pipeline/routing/forms.py`). ``references``: training prompts
    of each class that the gate compares with.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    held_out: float
    forms: float
    references: int
    seed: int


def train_router(
    prompts: Sequence[str],
    labels: Sequence[str],
    encode: Encode,
    vocab_size: int,
    settings: RouterSettings,
    card: dict[str, Any],
    progress: Callable[[str], None],
) -> MlpRouter:
    """Train a router with cross-entropy on prompts and the names of their adapters; ``encode`` gives token ids.

    Temperature, gate and metrics come from held-out prompts, each as it is and as an epoch of the training sees it.
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
    held_out = _embed(model, encode(prompts[:size]))
    varied = _embed(model, encode(_some_varied(prompts[:size], settings.forms, rng)))
    # The first prompts of each class; their order is random already.
    by_class = [size + (targets[size:] == c).nonzero().flatten()[: settings.references] for c in range(len(names))]
    chosen = torch.cat(by_class)
    references = _embed(model, encode([prompts[i] for i in chosen]))
    known = KnownPrompts(normalize(references, dim=1), targets[chosen], held_out, targets[:size])
    # Prompts in other forms are in domain too.
    both, both_targets = torch.cat([held_out, varied]), targets[:size].repeat(2)
    with torch.inference_mode():
        logits = model.classify(both)
    card |= {
        "labels": names,
        "shape": asdict(model.shape),
        "temperature": fit_temperature(logits, both_targets),
        "gate_thresholds": gate_thresholds(
            gate_score(both.double(), known.references.double(), MlpRouter.gate_neighbour)
        ),
        "settings": asdict(settings),
        "metrics": {
            "train_prompts": len(prompts) - size,
            "held_out_prompts": size,
            **held_out_metrics(logits, both_targets),
            "seconds": round(time.monotonic() - start, 1),
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    }
    # A class with few prompts may have no training prompt: then its held-out ones give the centroid.
    centroids = [
        centroid(references[targets[chosen] == c] if len(i) else held_out[targets[:size] == c])
        for c, i in enumerate(by_class)
    ]
    return MlpRouter(model, known, CentroidHead.of(torch.stack(centroids)), card)


def _fit(
    model: RouterNetwork,
    texts: list[str],
    targets: torch.Tensor,
    encode: Encode,
    settings: RouterSettings,
    progress: Callable[[str], None],
) -> None:
    rng = random.Random(settings.seed)
    steps = settings.epochs * -(-len(texts) // settings.batch_size)
    # Fused: each step updates the whole embedding, and that is most of its time.
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
    for epoch in range(1, settings.epochs + 1):
        prompts = encode(_some_varied(texts, settings.forms, rng))
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


def _some_varied(texts: Sequence[str], share: float, rng: random.Random) -> list[str]:
    """Write the ``share`` of some texts in another form."""
    return [vary(text, rng) if rng.random() < share else text for text in texts]


@torch.inference_mode()
def _embed(model: RouterNetwork, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    return torch.cat([model.embed(*flatten_prompts(prompts[i : i + 1024])) for i in range(0, len(prompts), 1024)])
