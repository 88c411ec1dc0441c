"""A router without training: the centroids of a few example prompts of each adapter.

A prompt is the mean of the base model's own token embeddings. The mean is whitened by the covariance of the examples
within their classes, and reduced to the directions in which the examples differ most (linear discriminant analysis;
Fisher 1936, Rao 1948). All of this is linear, so the router holds one vector for each token id, and no weight of the
base model. Adapters chosen by centroids of examples: ARIADNE, arXiv 2606.19079.
"""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import embedding_bag, normalize

from pipeline.errors import UserError
from pipeline.records import Prompt

from .calibration import fit_temperature, gate_score, gate_thresholds, held_out_metrics
from .centroids import CentroidHead, centroid
from .extension import MIN_EXAMPLES
from .forms import in_forms
from .mlp_router import HeldOut, MlpRouter
from .network import CentroidNetwork, CentroidShape, flatten_prompts

_FOLDS = 4  # for temperature, gate and metrics: each fold is measured with the centroids of the others
_SHRINKAGE = 0.1  # share of a sphere in the covariance: a few examples do not span all its directions


@dataclass(frozen=True)
class CentroidSettings:
    """Settings of the centroids.

    ``examples``: at most this many prompts of an adapter. ``forms``: other forms in which each example is used too
    (`pipeline/routing/forms.py`). ``dimensions`` of the vectors of the token ids.
    """

    examples: int
    forms: int
    dimensions: int
    seed: int


class CentroidRouter(MlpRouter):
    """Routes to the adapters whose examples' centroids are nearest to the mean token vector of a prompt."""

    kind = "centroids"
    network_type = CentroidNetwork


@dataclass(frozen=True)
class _Projection:
    """Mean token embeddings [... x H] -> whitened and reduced ones: ``(x - mean) @ matrix`` [... x dimensions]."""

    mean: torch.Tensor
    matrix: torch.Tensor

    @staticmethod
    def fit(pooled: torch.Tensor, targets: torch.Tensor, classes: int, dimensions: int) -> "_Projection":
        """Fit it to examples [n x H] and the indices of their classes [n]."""
        means = torch.stack([pooled[targets == c].mean(0) for c in range(classes)])
        within = pooled - means[targets]
        covariance = within.T @ within / len(within)
        scale = covariance.trace() / len(covariance)
        covariance = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * scale * torch.eye(len(covariance))
        variances, directions = torch.linalg.eigh(covariance)
        whitening = directions * variances.clamp(min=1e-12).rsqrt()
        mean = means.mean(0)
        white = (pooled - mean) @ whitening
        _, directions = torch.linalg.eigh(white.T @ white)
        return _Projection(mean, whitening @ directions[:, -dimensions:])

    def __call__(self, pooled: torch.Tensor) -> torch.Tensor:
        return (pooled - self.mean) @ self.matrix


def fit_centroids(
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    encode: Callable[[Sequence[Prompt]], list[list[int]]],
    token_embeddings: torch.Tensor,
    settings: CentroidSettings,
    card: dict[str, Any],
) -> CentroidRouter:
    """Make a router from example prompts, their adapters' names, and the base model's ``token_embeddings`` [V x H].

    Temperature, gate and metrics are cross-validated: each example is measured with the centroids of the others.
    Raises `UserError` if an adapter has fewer than 8 examples.
    """
    start = time.monotonic()
    rng = random.Random(settings.seed)
    names = sorted(set(labels))
    texts, targets, folds = _examples(prompts, labels, names, settings.examples, rng)
    views = encode(in_forms(texts, settings.forms, rng))
    pooled = _pool(views, token_embeddings).reshape(-1, len(texts), token_embeddings.shape[1])  # [views x n x H]
    logits, scores = _cross_validate(pooled, targets, folds, len(names), settings.dimensions)
    projection = _Projection.fit(*_flat(pooled, targets), len(names), settings.dimensions)
    network = CentroidNetwork(CentroidShape(len(token_embeddings), len(names), projection.matrix.shape[1]))
    with torch.no_grad():
        network.embedding.weight.copy_(projection(token_embeddings).half())
        embedded = projection(pooled)
        centroids = _centroids(embedded, targets, len(names)).half().float()
        network.centroids.copy_(centroids)
    card |= {
        "labels": names,
        "shape": asdict(network.shape),
        "temperature": fit_temperature(logits.flatten(0, 1), targets.repeat(len(pooled))),
        "gate_thresholds": gate_thresholds(scores),
        "settings": asdict(settings),
        "metrics": {
            "train_prompts": len(texts),
            "held_out_prompts": len(texts),
            **held_out_metrics(logits[[0, -1]].flatten(0, 1), targets.repeat(2)),
            "seconds": round(time.monotonic() - start, 1),
            "parameters": sum(p.numel() for p in network.parameters()),
        },
    }
    return CentroidRouter(network, HeldOut(embedded[0], targets), CentroidHead.of(centroids), card)


def _examples(
    prompts: Sequence[Prompt], labels: Sequence[str], names: list[str], limit: int, rng: random.Random
) -> tuple[list[Prompt], torch.Tensor, torch.Tensor]:
    """Draw the examples of each class; their texts, the indices of their classes [n], and of their folds [n]."""
    texts: list[Prompt] = []
    targets: list[int] = []
    folds: list[int] = []
    for index, name in enumerate(names):
        found = [prompt for prompt, label in zip(prompts, labels, strict=True) if label == name]
        if len(found) < MIN_EXAMPLES:
            raise UserError(f"data: {len(found)} prompt(s) of {name!r}; at least {MIN_EXAMPLES} are needed")
        chosen = rng.sample(found, min(limit, len(found)))
        texts += chosen
        targets += [index] * len(chosen)
        folds += [i % _FOLDS for i in range(len(chosen))]
    return texts, torch.tensor(targets), torch.tensor(folds)


def _pool(prompts: list[list[int]], token_embeddings: torch.Tensor) -> torch.Tensor:
    """Mean token embeddings [n x H] of prompts."""
    ids, offsets = flatten_prompts(prompts)
    return embedding_bag(ids, token_embeddings, offsets, mode="mean")


def _cross_validate(
    pooled: torch.Tensor, targets: torch.Tensor, folds: torch.Tensor, classes: int, dimensions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [views x n x classes], gate scores [n] of the first view; each fold by the centroids of the others."""
    logits = torch.empty(*pooled.shape[:2], classes)
    scores = torch.empty(len(targets), dtype=torch.float64)
    for fold in range(_FOLDS):
        rest, held = folds != fold, folds == fold
        projection = _Projection.fit(*_flat(pooled[:, rest], targets[rest]), classes, dimensions)
        centroids = _centroids(projection(pooled[:, rest]), targets[rest], classes)
        embedded = projection(pooled[:, held])
        logits[:, held] = normalize(embedded, dim=-1) @ centroids.T * CentroidNetwork.SCALE
        scores[held] = gate_score(embedded[0].double(), centroids.double())
    return logits, scores


def _flat(pooled: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return pooled.flatten(0, 1), targets.repeat(len(pooled))


def _centroids(embedded: torch.Tensor, targets: torch.Tensor, classes: int) -> torch.Tensor:
    """Centroids [classes x dimensions] of examples in all views [views x n x dimensions]."""
    flat, repeated = _flat(embedded, targets)
    return torch.stack([centroid(flat[repeated == c]) for c in range(classes)])
