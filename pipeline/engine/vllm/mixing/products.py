"""The products of all adapters in vLLM's slots for the tokens of a forward pass."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import linear


class TokenWeights:
    """The weight of each slot's adapter for each token of the next forward pass: a buffer [max_tokens x slots], fp32.

    Its address stays the same, so that recorded CUDA graphs read the current weights. Rows after the last token are
    zero, because vLLM pads batches.

    ``is_eager``: nothing is compiled or recorded, so products may be those of the adapters that the tokens use, if
    these are at most half of the slots. ``chosen``: their slots, which then are the columns; None: all slots.
    """

    def __init__(self, max_tokens: int, slots: int, device: torch.device, is_eager: bool) -> None:
        self.slots, self.is_eager = slots, is_eager
        self.chosen: list[int] | None = None
        self.is_skipped = is_eager  # no token of the next pass has a weight
        self.version = 0  # of the slots chosen, and of the adapters in them
        self._buffer = torch.zeros(max_tokens, slots, device=device)
        self._tokens = 0

    def set_rows(self, rows: torch.Tensor) -> None:
        """Set the weights of the next tokens [tokens x slots], on the host."""
        if self.is_eager:
            used = set(rows.any(0).nonzero().flatten().tolist())
            self.is_skipped = not used
            self._choose(used)
        columns = rows if self.chosen is None else rows[:, self.chosen]
        if self._buffer.is_cuda:  # a copy from other memory would wait for the passes before
            columns = columns.contiguous().pin_memory()
        self._buffer[: len(rows), : columns.shape[1]].copy_(columns, non_blocking=True)
        self._buffer[len(rows) : self._tokens].zero_()
        self._tokens = len(rows)

    def of(self, tokens: int) -> torch.Tensor:
        """Return the weights of the first tokens [tokens x columns]."""
        return self._buffer[:tokens, : self.slots if self.chosen is None else len(self.chosen)]

    def slots_changed(self) -> None:
        """Note that other adapters are in the slots."""
        self.version += 1

    def _choose(self, used: set[int]) -> None:
        """Choose the slots in use, but keep a choice that has them all and few others: another costs copies."""
        kept = set(range(self.slots)) if self.chosen is None else set(self.chosen)
        if used <= kept and (2 * len(used) > len(kept) or not used):
            return
        self.chosen = sorted(used) if 2 * len(used) <= self.slots else None
        self.version += 1


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
        self._weights, slots = weights, weights.slots
        self._all_a = like.new_zeros(sum(used), slots, rank, inputs)
        self._all_b: list[torch.Tensor] = []  # [slots x rank x out] of used slices
        self._starts: list[int] = []  # their first columns of y
        slot_a, slot_b = [], []
        for width, end, is_used in zip(widths, accumulate(widths), used, strict=True):
            b = like.new_zeros(slots, rank if is_used else 0, width)
            a = self._all_a[len(self._all_b)] if is_used else like.new_zeros(slots, 0, inputs)
            slot_a.append(a.unsqueeze(1))
            slot_b.append(b.transpose(1, 2).unsqueeze(1))
            if is_used:
                self._starts.append(end - width)
                self._all_b.append(b)
        self.slot_a, self.slot_b = tuple(slot_a), tuple(slot_b)
        self._a, self._b = self._all_a.view(-1, inputs), [b.view(-1, b.shape[2]) for b in self._all_b]
        self._version = 0

    def add_lora_linear(self, y: torch.Tensor, x: torch.Tensor, *_: Any, **__: Any) -> None:
        """Add the products for x [tokens x in] to y [tokens x out of all slices]; called by vLLM's linear layers.

        The other arguments are what vLLM's own operators need, among them `slot_a` and `slot_b`.
        """
        if not self._starts or self._weights.is_skipped:
            return
        if not self._weights.is_eager:
            _compiled_add_products(y, x, self._weights.of(x.shape[0]), self._a, self._b, self._starts)
            return
        if self._version != self._weights.version:
            self._take(self._weights.chosen)
            self._version = self._weights.version
        add_products(y, x, self._weights.of(x.shape[0]), self._a, self._b, self._starts)

    def _take(self, slots: list[int] | None) -> None:
        """Copy A and B of these slots; of all, nothing is copied."""
        a, b = self._all_a, self._all_b
        if slots is not None:
            index = torch.tensor(slots, device=a.device)
            a, b = a.index_select(1, index), [each.index_select(0, index) for each in b]
        self._a, self._b = a.view(-1, a.shape[3]), [each.view(-1, each.shape[2]) for each in b]


def add_products(
    y: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, a: torch.Tensor, b: list[torch.Tensor], starts: list[int]
) -> None:
    """Add ``((x a^T) * weights) b^T`` to the columns of y of each slice.

    Args:
        y: [tokens x out of all slices].
        x: [tokens x in].
        weights: of each token for each adapter [tokens x adapters].
        a: of all slices [slices * adapters * rank x in].
        b: of each slice [adapters * rank x out].
        starts: the first column of y of each slice.

    """
    inner = linear(x, a).view(len(x), len(b), weights.shape[1], -1)
    weights = weights.view(len(x), 1, -1, 1)
    if inner.dtype is torch.float16:  # adapters of other tokens may overflow, and infinity times 0 is NaN
        inner.masked_fill_(weights == 0, 0)
    inner.mul_(weights)  # computed in fp32, rounded once
    for index, (start, part) in enumerate(zip(starts, b, strict=True)):
        y[:, start : start + part.shape[1]].addmm_(inner[:, index].flatten(1), part)


# One operator for torch.compile, which would copy y for each slice that is added to.
_compiled_add_products = torch.library.custom_op("loraloom::add_products", add_products, mutates_args=("y",))
_compiled_add_products.register_fake(lambda y, x, weights, a, b, starts: None)
