"""Turn class probabilities into mixtures: top-p choice, fusion weights, quantisation."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from pipeline.errors import UserError
from pipeline.records import Mixture

if TYPE_CHECKING:  # the config reads the defaults below, and does not wait for torch
    import torch

WeightRule = Literal["renormalize", "softmax"]
Fallback = Literal["base", "all", "nearest"]

_NEAREST = 3  # adapters of the fallback `nearest`
_MAX_BLENDED = 100  # adapters of the fallback `all`: every row that gets it holds their names


@dataclass(frozen=True)
class RoutingPolicy:
    """Rules that turn class probabilities into mixtures.

    ``top_p``: the smallest set of classes whose probabilities sum to at least this is kept (0.6 in the released code).
    ``max_adapters``: adapters of a routed mixture at most; 0 is the base model alone for every prompt.
    ``weights``: ``renormalize`` (p_i / sum) or the released code's ``softmax`` over the kept probabilities.
    ``weight_steps``: weights are multiples of one over this, so that mixtures repeat and group.
    ``gate``: prompts below the router's in-domain threshold get the ``fallback``; ``acceptance`` is the share of
    in-domain prompts that are above it. ``fallback``: ``base`` is the base model alone, ``all`` every adapter of the
    router at equal weight, ``nearest`` the three most likely ones, or ``max_adapters`` if that is fewer; None is what
    the router was made with.
    """

    top_p: float = 0.6
    max_adapters: int = 4
    weights: WeightRule = "renormalize"
    weight_steps: int = 16
    gate: bool = True
    fallback: Fallback | None = None
    acceptance: float = 0.99

    def for_router(self, fallback: Fallback) -> "RoutingPolicy":
        """Return this policy with the ``fallback`` of a router, if it has none of its own."""
        return replace(self, fallback=self.fallback or fallback)

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

    def fallbacks(self, probabilities: "torch.Tensor", labels: Sequence[str]) -> list[Mixture]:
        """Return the mixture of each row of ``probabilities`` [n x classes] that the gate rejects."""
        if self.fallback == "all" and self.max_adapters:
            return [blend(labels)] * len(probabilities)
        size = min(_NEAREST, self.max_adapters) if self.fallback == "nearest" else 0
        likeliest = probabilities.double().sort(dim=1, descending=True, stable=True).indices[:, :size]
        return [blend([labels[c] for c in row]) for row in likeliest.tolist()]

    @property
    def fallback_name(self) -> str:
        """Name what answers a prompt that the gate rejects."""
        names: dict[Fallback | None, str] = {
            None: "the fallback of the router",
            "base": "the base model alone",
            "all": "all adapters at equal weight",
            "nearest": "the nearest adapters at equal weight",
        }
        return names[self.fallback if self.max_adapters else "base"]

    def largest_mixture(self, adapters: int) -> int:
        """Return how many adapters a mixture may have at most. ``adapters``: their number in the bank."""
        return max(adapters, self.max_adapters) if self._blends_all else self.max_adapters

    def check_fallback(self, labels: Sequence[str]) -> None:
        """Raise `UserError` if the fallback would blend too many adapters."""
        if self._blends_all and len(labels) > _MAX_BLENDED:
            raise UserError(
                f"config: routing.fallback=all blends {_MAX_BLENDED} adapters at most, this router has {len(labels)};"
                " use routing.fallback=nearest or base"
            )

    @property
    def _blends_all(self) -> bool:
        return self.gate and self.fallback == "all" and self.max_adapters > 0

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


def blend(adapters: Sequence[str]) -> Mixture:
    """Mix adapters at equal weight; of none, the base model alone.

    Each weight is the float nearest to 1/n, not a multiple of a step: equal sets give equal mixtures anyway.
    """
    return Mixture.of({name: 1 / len(adapters) for name in adapters})


def quantise(weights: "torch.Tensor", steps: int) -> "torch.Tensor":
    """Round weights [n x k] to units of 1/steps that sum to ``steps`` in each row (largest-remainder method)."""
    exact = weights * steps
    units = exact.floor()
    short = (steps - units.sum(1, keepdim=True)).round()
    rank = (exact - units).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (units + (rank < short)).long()
