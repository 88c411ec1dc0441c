"""Attend with torch's scaled_dot_product_attention: decoding sequences of one lane together, prompt chunks alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention

from .segment import Options, Segment
from .slots import Lane

_LENGTH_MULTIPLE = 32  # key lengths of a decode step are rounded up to it: kernels are prepared for fewer shapes


@dataclass(eq=False)
class DecodePart:
    """Sequences of one lane with one token each, which attend in one call as a batch.

    Query heads that share keys become queries of one head, so that keys and values are read once and never repeated.
    Slots of other sequences in between run too, and their output is dropped.

    ``start`` and ``stop``: indices of packed tokens. ``slots`` [stop - start]: slot indices, rising. ``positions``: of
    the tokens in their slots. ``slot_count``: slots that run. ``length``: positions of each that are read.
    """

    lane: Lane
    start: int
    stop: int
    slots: torch.Tensor
    positions: torch.Tensor
    slot_count: int
    length: int
    _masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def from_segments(cls, start: int, segments: Sequence[Segment], device: torch.device) -> "DecodePart":
        """Make the part of segments of one lane, given in the order of their slots."""
        lane, slots = segments[0].slot.lane, [s.slot.index for s in segments]
        longest = max(s.start for s in segments) + 1
        return cls(
            lane,
            start,
            start + len(segments),
            torch.tensor(slots, device=device),
            torch.tensor([s.start for s in segments], device=device),
            slots[-1] + 1,
            min(-(-longest // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE, lane.capacity),
        )

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """Write and attend: [tokens x query heads x dim] of packed queries, keys and values [heads x tokens x dim].

        Never waits for the device, and depends on the memory of ``positions`` alone, so it can be recorded (`graphs`).
        """
        keys, values = self.lane.buffers[layer]
        keys[self.slots, :, self.positions] = key[:, self.start : self.stop].transpose(0, 1)
        values[self.slots, :, self.positions] = value[:, self.start : self.stop].transpose(0, 1)
        heads = query.shape[0]
        queries = query[:, self.start : self.stop].transpose(0, 1)
        queries = queries.reshape(len(queries), keys.shape[1], heads // keys.shape[1], -1)
        if self.slot_count > len(queries):
            queries = queries.new_zeros(self.slot_count, *queries.shape[1:]).index_copy_(0, self.slots, queries)
        keys, values = (buffer[: self.slot_count, :, : self.length] for buffer in (keys, values))
        output = _attention(queries, keys, values, self._mask(options.window, query), options)
        if self.slot_count > self.stop - self.start:
            output = output[self.slots]
        return output.reshape(len(output), heads, -1)

    def _mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """[slots x 1 x 1 x length]: 0 up to the sequence's own token and within the window, -inf elsewhere."""
        if window not in self._masks:
            positions = torch.arange(self.length, device=like.device)
            own = self.positions.unsqueeze(1)
            hidden = positions > own
            if window is not None:
                hidden |= positions <= own - window
            # Slots in between see all of their positions: a row that sees nothing would be NaN.
            mask = like.new_zeros(self.slot_count, self.length)
            mask[self.slots] = torch.zeros_like(hidden, dtype=like.dtype).masked_fill_(hidden, float("-inf"))
            self._masks[window] = mask[:, None, None]
        return self._masks[window]


class ChunkPart:
    """Consecutive tokens, or branches, of one sequence: a causal chunk of its prompt."""

    def __init__(self, start: int, segment: Segment) -> None:
        self.start, self.stop = start, start + len(segment.tokens)
        self._segment = segment
        self._masks: dict[int | None, torch.Tensor] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """Write and attend: [tokens x query heads x dim] of packed queries, keys and values [heads x tokens x dim]."""
        segment = self._segment
        keys, values = (buffer[segment.slot.index, :, : segment.end] for buffer in segment.slot.lane.buffers[layer])
        keys[:, segment.start :] = key[:, self.start : self.stop]
        values[:, segment.start :] = value[:, self.start : self.stop]
        heads, key_heads = query.shape[0], keys.shape[0]
        queries = query[:, self.start : self.stop].reshape(key_heads, heads // key_heads, self.stop - self.start, -1)
        # Repeat the keys for the heads that share them as a view, not a copy.
        keys, values = (held.unsqueeze(1).expand(-1, heads // key_heads, -1, -1) for held in (keys, values))
        output = _attention(queries, keys, values, self._mask(options.window, query), options)
        return output.reshape(heads, self.stop - self.start, -1).transpose(0, 1)

    def _mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """Additive mask [tokens x end]; None if the tokens are a whole prompt, which the causal flag covers."""
        segment = self._segment
        if segment.start == 0 and segment.branch_mask is None and (window is None or window >= segment.end):
            return None
        if window not in self._masks:
            own = torch.tensor([*(segment.positions or range(segment.start, segment.end))], device=like.device)
            positions = torch.cat([torch.arange(segment.start, device=like.device), own])
            visible = positions <= own.unsqueeze(1)
            if segment.branch_mask is not None:
                visible[:, segment.start :] = segment.branch_mask.to(like.device)
            if window is not None:
                visible &= positions > own.unsqueeze(1) - window
            self._masks[window] = like.new_zeros(visible.shape).masked_fill_(~visible, float("-inf"))
        return self._masks[window]


def _attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, options: Options
) -> torch.Tensor:
    """Attention [.. x heads x queries x dim] with an additive mask, or causal without one."""
    if options.softcap is None:
        return scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=mask is None, scale=options.scale
        )
    # No fused kernel caps scores (Gemma 2, arXiv 2408.00118); scores are computed as the eager form of transformers.
    scale = query.shape[-1] ** -0.5 if options.scale is None else options.scale
    scores = torch.tanh(query @ keys.transpose(-1, -2) * scale / options.softcap) * options.softcap
    if mask is None:
        length = keys.shape[-2]
        mask = torch.full((length, length), float("-inf"), dtype=scores.dtype, device=scores.device).triu(1)
    return (scores + mask).softmax(-1, dtype=torch.float32).to(query.dtype) @ values
