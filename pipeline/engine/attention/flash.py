"""Attend the prompts of a pass in one call: FlashAttention-2 (arXiv 2307.08691) over concatenated sequences."""

from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import torch

from .segment import Options, Segment, concatenate
from .slots import LayerShape

_MAX_HEAD_DIM = 256


def can_use_flash(shapes: Sequence[LayerShape], device: torch.device) -> bool:
    """Whether the kernel runs on the device and supports all layers of a model."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return torch.backends.cuda.is_flash_attention_available() and all(map(_is_supported, shapes))


def _is_supported(shape: LayerShape) -> bool:
    is_half = shape.dtype in (torch.bfloat16, torch.float16)
    dim = shape.key_dim
    return is_half and dim == shape.value_dim and dim % 8 == 0 and dim <= _MAX_HEAD_DIM and not shape.capped


class SequenceBounds(NamedTuple):
    """Cumulative lengths of ``queries`` and ``keys`` [sequences + 1], int32, and the longest of each."""

    queries: torch.Tensor
    keys: torch.Tensor
    max_queries: int
    max_keys: int


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: SequenceBounds, options: Options
) -> torch.Tensor:
    """Compute causal attention [queries x heads x dim] within each sequence; its queries are the last of its keys.

    Calls the kernel itself: `torch.nn.attention.varlen` calls the same one, with other arguments in each release
    (grouped heads need a flag from 2.12 on, windows came with 2.11).
    """
    left, right = (-1, -1) if options.window is None else (options.window - 1, 0)
    output: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        *bounds,
        0.0,
        options.window is None,
        return_debug_mask=False,
        scale=options.scale,
        window_size_left=left,
        window_size_right=right,
    )[0]
    return output


class _LaneChunks:
    """Prompt chunks of one lane: where their keys and values are written, and read back if earlier chunks ran."""

    def __init__(self, start: int, segments: Sequence[Segment], reads_cache: bool, device: torch.device) -> None:
        self.lane = segments[0].slot.lane
        self.start, self.stop = start, start + sum(len(s.tokens) for s in segments)
        self._written = _slot_positions([(s.slot.index, s.start, s.end) for s in segments], device)
        self._read = _slot_positions([(s.slot.index, 0, s.end) for s in segments], device) if reads_cache else None

    def update(self, buffer: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write new keys or values [tokens x heads x dim], and return all of the sequences, earlier ones included."""
        buffer[self._written[0], :, self._written[1]] = new
        return new if self._read is None else buffer[self._read[0], :, self._read[1]]


class FlashPart:
    """Prompt chunks, in the order of their lanes. Each attends to its sequence so far, and to itself.

    ``start`` and ``stop`` are indices of packed tokens. The cache is not read if no chunk follows an earlier one.
    """

    def __init__(self, start: int, segments: Sequence[Segment], device: torch.device) -> None:
        self.start = self.stop = start
        reads_cache = any(s.start for s in segments)
        self._lanes: list[_LaneChunks] = []
        for _, group in groupby(segments, key=lambda s: id(s.slot.lane)):
            self._lanes.append(_LaneChunks(self.stop, [*group], reads_cache, device))
            self.stop = self._lanes[-1].stop
        lengths, ends = [len(s.tokens) for s in segments], [s.end for s in segments]
        bounds = torch.tensor([[0, *accumulate(lengths)], [0, *accumulate(ends)]], dtype=torch.int32, device=device)
        self._bounds = SequenceBounds(bounds[0], bounds[1], max(lengths), max(ends))

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """Write and attend: [tokens x query heads x dim] of packed queries, keys and values [heads x tokens x dim]."""
        query, key, value = (packed.transpose(0, 1) for packed in (query, key, value))
        keys, values = [], []
        for chunks in self._lanes:
            key_buffer, value_buffer = chunks.lane.buffers[layer]
            keys.append(chunks.update(key_buffer, key[chunks.start : chunks.stop]))
            values.append(chunks.update(value_buffer, value[chunks.start : chunks.stop]))
        return attention(query[self.start : self.stop], concatenate(keys), concatenate(values), self._bounds, options)


def _slot_positions(ranges: Sequence[tuple[int, int, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Slot index and position of each token in ranges (slot index, start, stop)."""
    slots = [slot for slot, start, stop in ranges for _ in range(start, stop)]
    positions = [position for _, start, stop in ranges for position in range(start, stop)]
    both = torch.tensor([slots, positions], device=device)
    return both[0], both[1]
