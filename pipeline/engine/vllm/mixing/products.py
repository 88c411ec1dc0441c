"""The products of all adapters in vLLM's slots for the tokens of a forward pass."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import linear


class TokenWeights:
    """The weight of each slot's adapter for each token of the next forward pass: a buffer [max_tokens x slots], fp32.

    Its address stays the same, so that recorded CUDA graphs read the current weights. Rows after the last token are
    zero, because vLLM pads batches. ``can_skip``: no graph is recorded or compiled, so layers may do nothing while
    all weights are zero.
    """

    def __init__(self, max_tokens: int, slots: int, device: torch.device, can_skip: bool) -> None:
        self.slots = slots
        self._buffer = torch.zeros(max_tokens, slots, device=device)
        self._tokens = 0
        self._can_skip = can_skip
        self.is_skipped = can_skip

    def set(self, rows: torch.Tensor) -> None:
        """Set the weights of the next tokens [tokens x slots], on the host."""
        self._buffer[: len(rows)].copy_(rows)
        self._buffer[len(rows) : self._tokens].zero_()
        self._tokens = len(rows)
        self.is_skipped = self._can_skip and not bool(rows.any())

    def of(self, tokens: int) -> torch.Tensor:
        """Return the weights of the first tokens [tokens x slots]."""
        return self._buffer[:tokens]


class SlotProducts:
    """``y += ((x A^T) * w) B^T`` for one linear layer, with A and B of the adapters in all slots, stacked.

    It takes the place of vLLM's `PunicaWrapperBase` in a layer. vLLM joins modules with the same input (q, k and v) in
    one layer, as its *slices*. A of all slices is one matrix [slices * slots * rank x in], one product; a slice that
    no adapter changes has no rows in it. An adapter with a smaller rank leaves rows of zeros.

    ``slot_a``, ``slot_b``: views of A and B in the shapes in which vLLM writes adapters, for each slice
    [slots x 1 x rank x in] and [slots x 1 x out x rank], with rank 0 in slices that are not ``used``.
    """

    def __init__(
        self,
        weights: TokenWeights,
        rank: int,
        inputs: int,
        widths: Sequence[int],
        used: Sequence[bool],
        like: torch.Tensor,
    ) -> None:
        self._weights, self._rank, slots = weights, rank, weights.slots
        a = like.new_zeros(sum(used), slots, rank, inputs)
        self._a = a.view(-1, inputs)
        self._parts: list[tuple[slice, torch.Tensor]] = []  # columns of y, and B [slots * rank x out], of used slices
        slot_a, slot_b = [], []
        for width, end, is_used in zip(widths, accumulate(widths), used, strict=True):
            b = like.new_zeros(slots, rank if is_used else 0, width)
            slot_b.append(b.transpose(1, 2).unsqueeze(1))
            slot_a.append((a[len(self._parts)] if is_used else like.new_zeros(slots, 0, inputs)).unsqueeze(1))
            if is_used:
                self._parts.append((slice(end - width, end), b.view(-1, width)))
        self.slot_a, self.slot_b = tuple(slot_a), tuple(slot_b)

    def add_lora_linear(self, y: torch.Tensor, x: torch.Tensor, *_: Any, **__: Any) -> None:
        """Add the products for x [tokens x in] to y [tokens x out of all slices]; called by vLLM's linear layers.

        The other arguments are what vLLM's own operators need, among them `slot_a` and `slot_b`.
        """
        if not self._parts or self._weights.is_skipped:
            return
        tokens = x.shape[0]  # not `len`, which torch.compile takes for a constant
        inner = linear(x, self._a).view(tokens, len(self._parts), self._weights.slots, self._rank)
        weights = self._weights.of(tokens).view(tokens, 1, -1, 1)
        if inner.dtype is torch.float16:  # adapters of other tokens may overflow, and infinity times 0 is NaN
            inner = inner.masked_fill(weights == 0, 0)
        inner.mul_(weights)  # computed in fp32, rounded once
        for index, (columns, b) in enumerate(self._parts):
            y[:, columns].addmm_(inner[:, index].flatten(1), b)
