"""Turn class probabilities into mixtures: top-p choice, fusion weights, quantisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.records import Mixture

if TYPE_CHECKING:  # the config reads the defaults below, and does not wait for torch
    import torch

WeightRule = Literal["renormalize", "softmax"]


@dataclass(frozen=True)
class RoutingPolicy:
    """Rules that turn class probabilities into mixtures.

    ``top_p``: the smallest set of classes whose probabilities sum to at least this is kept (0.6 in the released code).
    ``max_adapters``: adapters of a mixture at most; 0 is the base model alone.
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

    def mixtures(self, probabilities: "torch.Tensor", labels: Sequence[str]) -> list[Mixture]:
        """Return one mixture for each row of ``probabilities`` [n x classes]."""
        if self.max_adapters == 0:
            return [Mixture()] * len(probabilities)
        chosen, classes = self.choose(probabilities)
        units = quantise(self.fuse(chosen), self.weight_steps)
        return [
            Mixture.of({labels[c]: u / self.weight_steps for c, u in zip(cs, us, strict=True)})
            for cs, us in zip(classes.tolist(), units.tolist(), strict=True)
        ]

    def choose(self, probabilities: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """Choose by top-p: probabilities [n x k], zero if not chosen, and their classes [n x k], largest first."""
        count = min(self.max_adapters, probabilities.shape[1])
        # A stable sort gives equal probabilities the order of their classes, wherever it runs.
        ordered, classes = probabilities.double().sort(dim=1, descending=True, stable=True)
        before = ordered.cumsum(1) - ordered
        chosen = before < self.top_p
        chosen[:, 0] = True
        return (ordered * chosen)[:, :count], classes[:, :count]

    def fuse(self, chosen: "torch.Tensor") -> "torch.Tensor":
        """Return fusion weights [n x k] that sum to 1 in each row; zero where ``chosen`` is."""
        if self.weights == "softmax":
            chosen = chosen.exp() * (chosen > 0)
        return chosen / chosen.sum(1, keepdim=True)


def quantise(weights: "torch.Tensor", steps: int) -> "torch.Tensor":
    """Round weights [n x k] to units of 1/steps that sum to ``steps`` in each row (largest-remainder method)."""
    exact = weights * steps
    units = exact.floor()
    short = (steps - units.sum(1, keepdim=True)).round()
    rank = (exact - units).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (units + (rank < short)).long()
