"""The rows that are being generated now: their tokens, cache and masks."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad

from ..records import Mixture
from .cache import RowCache
from .row import Row


class Batch:
    """Rows, padded on the left to one length, and their KV cache. ``logits`` [rows x vocab] are of the last step."""

    logits: torch.Tensor

    def __init__(self, model: Any, rows: Sequence[Row]) -> None:
        self.model = model
        self.rows = list(rows)
        self.cache = RowCache()
        device = model.device
        longest = max(len(row.request.tokens) for row in rows)
        self.mask = torch.zeros(len(rows), longest, dtype=torch.long, device=device)
        ids = torch.zeros_like(self.mask)
        for place, row in enumerate(rows):
            tokens = torch.tensor(row.request.tokens, device=device)
            ids[place, longest - len(tokens) :] = tokens
            self.mask[place, longest - len(tokens) :] = 1
        self._forward(ids, (self.mask.cumsum(1) - 1).clamp(min=0))

    @property
    def mixtures(self) -> list[Mixture]:
        """Mixture of each row now."""
        return [row.mixture for row in self.rows]

    def step(self, tokens: torch.Tensor, context: int) -> None:
        """Run one decode step on the next token [rows] of every row."""
        self.mask = pad(self.mask, (0, 1), value=1)
        # Rows that have ended run along until they are taken out; they must not run past the position table.
        positions = (self.mask.sum(1, keepdim=True) - 1).clamp(max=context - 1)
        self._forward(tokens.unsqueeze(1), positions)

    def keep_unfinished(self) -> None:
        """Drop the rows that ended, and padding that no other row needs."""
        kept = [place for place, row in enumerate(self.rows) if row.ended is None]
        self.rows = [self.rows[place] for place in kept]
        places = torch.tensor(kept, dtype=torch.long, device=self.mask.device)
        self.mask, self.logits = self.mask[places], self.logits[places]
        cut = int(self.mask.argmax(1).min()) if kept else 0
        self.mask = self.mask[:, cut:]
        self.cache.keep(places, cut)

    def join(self, other: "Batch") -> None:
        """Append the rows of another batch that has been prefilled."""
        length = max(self.mask.shape[1], other.mask.shape[1])
        masks = [pad(mask, (length - mask.shape[1], 0)) for mask in (self.mask, other.mask)]
        self.mask = torch.cat(masks)
        self.logits = torch.cat([self.logits, other.logits])
        self.cache.join(other.cache)
        self.rows += other.rows

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> None:
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.logits = output.logits[:, -1].float()
