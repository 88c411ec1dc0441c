"""Prompts of many rows in one attention call: FlashAttention-2 (arXiv 2307.08691) over sequences laid end to end."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import TYPE_CHECKING

import torch

from .slots import Lane, LayerShape

if TYPE_CHECKING:
    from .packed import Options, Segment

_MOST_DIM = 256  # of a head


def is_flash(shapes: Sequence[LayerShape], device: torch.device) -> bool:
    """Whether the kernel runs on the device and takes all layers of a model."""
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return torch.backends.cuda.is_flash_attention_available() and all(map(_fits, shapes))


def _fits(shape: LayerShape) -> bool:
    half = shape.dtype in (torch.bfloat16, torch.float16)
    dim = shape.key_dim
    return half and dim == shape.value_dim and dim % 8 == 0 and dim <= _MOST_DIM and not shape.capped


@dataclass(frozen=True, eq=False)
class Sequences:
    """Where sequences begin: ``queries`` and ``keys`` [sequences + 1], int32, and the longest of each."""

    queries: torch.Tensor
    keys: torch.Tensor
    most_queries: int
    most_keys: int


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sequences: Sequences, options: "Options"
) -> torch.Tensor:
    """Causal attention [queries x heads x dim] of each sequence to its own keys, of which its queries are the last.

    Calls the kernel itself: `torch.nn.attention.varlen` calls the same one, with other arguments in each release
    (grouped heads need a flag from 2.12 on, windows came with 2.11).
    """
    left, right = (-1, -1) if options.window is None else (options.window - 1, 0)
    found: torch.Tensor = torch.ops.aten._flash_attention_forward(
        query,
        key,
        value,
        sequences.queries,
        sequences.keys,
        sequences.most_queries,
        sequences.most_keys,
        0.0,
        options.window is None,
        return_debug_mask=False,
        scale=options.scale,
        window_size_left=left,
        window_size_right=right,
    )[0]
    return found


class _Lane:
    """Chunks of one lane: where their keys and values are written, and read where some came before."""

    def __init__(self, start: int, segments: Sequence["Segment"], whole: bool, device: torch.device) -> None:
        self.lane: Lane = segments[0].slot.lane
        self.start, self.stop = start, start + sum(len(s.tokens) for s in segments)
        spans = [(s.slot.index, s.begin, s.begin + len(s.tokens)) for s in segments]
        self.written = _places(spans, device)
        self.read = None if whole else _places([(slot, 0, end) for slot, _, end in spans], device)

    def exchange(self, buffer: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Write new keys or values [tokens x heads x dim]; all of the sequences', those written before included."""
        buffer[self.written[0], :, self.written[1]] = new
        return new if self.read is None else buffer[self.read[0], :, self.read[1]]


class PromptPart:
    """Chunks of prompts, in the order of their lanes. Each attends to what its row has run before, and to itself.

    ``start`` and ``stop`` in the packed tokens. Where no chunk has anything before it, as most, the cache is not read.
    """

    def __init__(self, start: int, segments: Sequence["Segment"], device: torch.device) -> None:
        self.start = self.stop = start
        whole = all(s.begin == 0 for s in segments)
        self._lanes: list[_Lane] = []
        for _, group in groupby(segments, key=lambda s: id(s.slot.lane)):
            self._lanes.append(_Lane(self.stop, [*group], whole, device))
            self.stop = self._lanes[-1].stop
        lengths = [len(s.tokens) for s in segments]
        ends = [s.begin + len(s.tokens) for s in segments]
        borders = torch.tensor([[0, *accumulate(lengths)], [0, *accumulate(ends)]], dtype=torch.int32, device=device)
        self._sequences = Sequences(borders[0], borders[1], max(lengths), max(ends))

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: "Options"
    ) -> torch.Tensor:
        """Write and attend: [tokens x query heads x dim] of packed queries, keys and values [heads x tokens x dim]."""
        query, key, value = (given.transpose(0, 1) for given in (query, key, value))
        keys, values = [], []
        for own in self._lanes:
            held = own.lane.buffers[layer]
            keys.append(own.exchange(held[0], key[own.start : own.stop]))
            values.append(own.exchange(held[1], value[own.start : own.stop]))
        return attention(query[self.start : self.stop], end_to_end(keys), end_to_end(values), self._sequences, options)


def _places(spans: Sequence[tuple[int, int, int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Slot and position of each place of some spans (slot, begin, end)."""
    slots = [slot for slot, begin, end in spans for _ in range(begin, end)]
    places = [place for _, begin, end in spans for place in range(begin, end)]
    both = torch.tensor([slots, places], device=device)
    return both[0], both[1]


def end_to_end(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Parts of a pass as one; a single one as it is, not copied."""
    return torch.cat([*parts]) if len(parts) > 1 else parts[0]
