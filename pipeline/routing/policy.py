"""From class probabilities to mixtures: top-p choice, fusion weights, quantisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.records import Mixture

WeightRule = Literal["renormalize", "softmax"]


@dataclass(frozen=True)
class RoutingPolicy:
    """How probabilities become mixtures.

    ``top_p``: the smallest set of classes whose probabilities sum to at least this is kept (0.6 in the released code).
    ``max_adapters``: at most so many; 0 is the base model alone.
    ``weights``: ``renormalize`` (p_i / sum) or the released code's ``softmax`` over the kept probabilities.
    ``weight_steps``: weights are multiples of one over this, so that mixtures repeat and group.
    ``gate``: prompts below the router's in-domain threshold get the base model alone; ``acceptance`` is the share of
    in-domain prompts that are above it.
    """

    top_p: float = 0.6
    max_adapters: int = 4
    weights: WeightRule = "renormalize"
    weight_steps: int = 16
    gate: bool = True
    acceptance: float = 0.99

    def mixtures(self, probabilities: torch.Tensor, labels: Sequence[str]) -> list[Mixture]:
        """One mixture for each row of ``probabilities`` [n x classes]."""
        if self.max_adapters == 0:
            return [Mixture()] * len(probabilities)
        chosen, places = self.choose(probabilities)
        units = quantise(self.fuse(chosen), self.weight_steps)
        return [
            Mixture.of({labels[c]: u / self.weight_steps for c, u in zip(cs, us, strict=True)})
            for cs, us in zip(places.tolist(), units.tolist(), strict=True)
        ]

    def choose(self, probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-p: kept probabilities [n x k], zero where not kept, and their classes [n x k], largest first."""
        most = min(self.max_adapters, probabilities.shape[1])
        # A stable sort gives equal probabilities the order of their classes, wherever it runs.
        ordered, places = probabilities.double().sort(dim=1, descending=True, stable=True)
        before = ordered.cumsum(1) - ordered
        kept = before < self.top_p
        kept[:, 0] = True
        return (ordered * kept)[:, :most], places[:, :most]

    def fuse(self, chosen: torch.Tensor) -> torch.Tensor:
        """Fusion weights [n x k] that sum to 1; zero where ``chosen`` is."""
        if self.weights == "softmax":
            chosen = torch.where(chosen > 0, chosen.exp(), chosen)
        return chosen / chosen.sum(1, keepdim=True)


def quantise(weights: torch.Tensor, steps: int) -> torch.Tensor:
    """Whole units [n x k] of 1/steps that sum to ``steps`` in each row: the largest-remainder method."""
    exact = weights * steps
    units = exact.floor()
    short = (steps - units.sum(1, keepdim=True)).round()
    rank = (exact - units).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (units + (rank < short)).long()
