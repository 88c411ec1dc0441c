"""Tokens of one sequence in a pass, and options of a layer's attention."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.records import Spans

from .slots import Slot


@dataclass(frozen=True)
class Options:
    """Attention options of a layer, as transformers passes them to an attention function."""

    scale: float | None = None
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, eq=False)
class Segment:
    """Tokens of one sequence that run in one pass.

    ``start``: position in the slot of the first token. ``kept``: indices of the tokens whose logits are returned.
    ``spans``: mixtures of the tokens. If the tokens are branches (several continuations of one text in one slot),
    ``positions`` are their positions in the text, and ``branch_mask`` [tokens x tokens] is true where one of these
    tokens attends to another.
    """

    slot: Slot
    tokens: Sequence[int]
    start: int
    spans: Spans
    kept: Sequence[int] = ()
    positions: Sequence[int] | None = None
    branch_mask: torch.Tensor | None = None

    @property
    def end(self) -> int:
        """Position in the slot after the last token."""
        return self.start + len(self.tokens)


def concatenate(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Concatenate parts of a pass along the tokens; a single part is returned without a copy."""
    return torch.cat([*parts]) if len(parts) > 1 else parts[0]
