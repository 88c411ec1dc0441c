"""The mixtures of a batch: one for each row, or one for each token."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from pipeline.records import Mixture


@dataclass(frozen=True)
class Assignment:
    """Mixtures of the units of a batch. A unit is a row with all its tokens, or one token.

    ``indices`` [units], on the host: index of each unit's mixture. ``by_token``: units are tokens. ``kept``: indices of
    the tokens that the model's head sees (its ``logits_to_keep``); None if it sees all tokens.
    """

    mixtures: Sequence[Mixture]
    indices: torch.Tensor
    by_token: bool = False
    kept: torch.Tensor | None = None

    @cached_property
    def adapters(self) -> list[str]:
        """Sorted names of all adapters in the batch."""
        return sorted({name for mixture in self.mixtures for name in mixture.adapters})

    @cached_property
    def units(self) -> int:
        """Number of rows or tokens."""
        return len(self.indices)

    def counts(self, combinations: Sequence[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
        """Count the units of each combination of adapters that is not empty; a combination for each mixture."""
        counts: Counter[tuple[str, ...]] = Counter()
        for combination, count in zip(combinations, self._counts_by_mixture, strict=True):
            if combination and count:
                counts[combination] += count
        return counts

    @cached_property
    def _counts_by_mixture(self) -> list[int]:
        counts: list[int] = torch.bincount(self.indices, minlength=len(self.mixtures)).tolist()
        return counts

    def selection(self, tokens: int) -> torch.Tensor:
        """Return the units that a layer sees which gets fewer tokens than the model (the head).

        Raises `ValueError` if ``tokens`` is not a number of tokens that the head can see.
        """
        if self.by_token and self.kept is not None and len(self.kept) == tokens:
            return self.kept
        raise ValueError(
            f"lora: mixtures were set for {self.units} {'tokens' if self.by_token else 'rows'}, the model runs {tokens}"
        )
