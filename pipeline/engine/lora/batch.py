"""What a batch asks: the mixture of each row, or of each token."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from pipeline.records import Mixture

from .layout import Group


@dataclass(frozen=True)
class Assignment:
    """``places`` [units], on the host: the mixture of each unit. A unit is a row, with all its tokens, or one token.

    ``rows``: where units are tokens, in how many rows of equal length they lie. ``kept``: of tokens, those that the
    model's head sees (its ``logits_to_keep``); None: it sees all, or the last ones of each row.
    """

    mixtures: Sequence[Mixture]
    places: torch.Tensor
    by_token: bool = False
    rows: int = 1
    kept: torch.Tensor | None = None

    @cached_property
    def used(self) -> list[str]:
        """Names of all adapters in it, sorted."""
        return sorted({name for mixture in self.mixtures for name in mixture.adapters})

    @cached_property
    def units(self) -> int:
        """How many rows, or tokens."""
        return len(self.places)

    def combinations(self, group: Group) -> list[tuple[str, ...]]:
        """For each mixture those of its adapters that change the group."""
        return [tuple(name for name in mixture.adapters if name in group.ranks) for mixture in self.mixtures]

    def counts(self, combinations: Sequence[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
        """Units of each combination of adapters that is not empty."""
        counts: Counter[tuple[str, ...]] = Counter()
        for combination, count in zip(combinations, self._by_mixture, strict=True):
            if combination and count:
                counts[combination] += count
        return counts

    @cached_property
    def _by_mixture(self) -> list[int]:
        found: list[int] = torch.bincount(self.places, minlength=len(self.mixtures)).tolist()
        return found

    def selection(self, tokens: int) -> torch.Tensor:
        """Units that a layer of fewer tokens than the model's input sees (the head). `ValueError` for other counts."""
        if self.by_token:
            if self.kept is not None and len(self.kept) == tokens:
                return self.kept
            if self.kept is None and self.rows > 1 and tokens % self.rows == 0 and tokens < self.units:
                places = torch.arange(self.units).view(self.rows, -1)
                return places[:, -(tokens // self.rows) :].flatten()
        raise ValueError(
            f"lora: mixtures were set for {self.units} {'tokens' if self.by_token else 'rows'}, the model runs {tokens}"
        )
