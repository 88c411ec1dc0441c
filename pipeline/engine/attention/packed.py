"""One forward pass over tokens of many sequences, concatenated: [1 x tokens], no padding."""

from collections.abc import Sequence
from itertools import accumulate, groupby

import torch

from .flash import FlashPart
from .sdpa import ChunkPart, DecodePart
from .segment import Options, Segment, concatenate


class Step:
    """A pass over packed tokens [1 x tokens], in parts that attend in one call each."""

    _layers: dict[int, int]
    _parts: Sequence[DecodePart | FlashPart | ChunkPart]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """Write keys and values of a layer [1 x heads x tokens x dim]; return [1 x tokens x query heads x dim]."""
        index = self._layers[layer]
        outputs = [part.attend(index, query[0], key[0], value[0], options) for part in self._parts]
        return concatenate(outputs).unsqueeze(0)


class PackedStep(Step):
    """Inputs of a pass, and the attention of its tokens to the slots of their sequences.

    Sequences with one token come first, lane by lane in the order of their slots: a lane attends in one call.
    ``segments`` are in the order of the packed tokens, and so are logits. ``flash``: all prompt chunks but branches
    attend in one call too (`flash.can_use_flash`).
    """

    def __init__(
        self, segments: Sequence[Segment], layers: dict[int, int], device: torch.device, flash: bool = False
    ) -> None:
        single = [s for s in segments if len(s.tokens) == 1 and s.positions is None]
        single.sort(key=lambda s: (s.slot.lane.capacity, s.slot.index))
        chunks = [s for s in segments if len(s.tokens) > 1 or s.positions is not None]
        together = [s for s in chunks if flash and s.positions is None]
        together.sort(key=lambda s: s.slot.lane.capacity)
        apart = [s for s in chunks if not flash or s.positions is not None]
        self.segments = single + together + apart
        self._layers = layers
        self._parts = _make_parts(single, together, apart, device)
        starts = accumulate((len(s.tokens) for s in self.segments), initial=0)
        self.kept_indices = [start + kept for start, s in zip(starts, self.segments, strict=False) for kept in s.kept]
        self.kept = torch.tensor(self.kept_indices, dtype=torch.long, device=device)
        ids = [token for s in self.segments for token in s.tokens]
        positions = [position for s in self.segments for position in s.positions or range(s.start, s.end)]
        self.ids, self.positions = torch.tensor([[ids], [positions]], device=device)

    def finish(self) -> None:
        """Record the written lengths in the slots. A pass that raises leaves the sequences as they were."""
        for segment in self.segments:
            segment.slot.length = max(segment.slot.length, segment.end)


def _make_parts(
    single: Sequence[Segment], together: Sequence[Segment], apart: Sequence[Segment], device: torch.device
) -> list[DecodePart | FlashPart | ChunkPart]:
    parts: list[DecodePart | FlashPart | ChunkPart] = []
    start = 0
    for _, group in groupby(single, key=lambda s: id(s.slot.lane)):
        parts.append(DecodePart.from_segments(start, list(group), device))
        start = parts[-1].stop
    if together:
        parts.append(FlashPart(start, together, device))
        start = parts[-1].stop
    for segment in apart:
        parts.append(ChunkPart(start, segment))
        start = parts[-1].stop
    return parts
