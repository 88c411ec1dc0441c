"""A decode step whose shape and memory stay the same: what a recording needs."""

from collections.abc import Sequence
from itertools import groupby

import torch

from pipeline.engine.attention.flash import end_to_end
from pipeline.engine.attention.packed import LanePart, Options, Segment
from pipeline.engine.attention.slots import Lane

Shape = tuple[tuple[Lane, int], ...]
"""Lanes that take part, and how many of their first slots run."""


def static_shape(segments: Sequence[Segment]) -> Shape | None:
    """The shape of a step in which every row runs one token; None for other steps.

    Of each lane a power of two of slots runs, or all that it has, so that there are few shapes. A row among them that
    does not run now would be written over: no shape then.
    """
    if not all(len(s.tokens) == 1 and s.positions is None and s.kept for s in segments):
        return None
    ordered = sorted(segments, key=lambda s: (s.slot.lane.capacity, s.slot.index))
    shape = []
    for _, group in groupby(ordered, key=lambda s: id(s.slot.lane)):
        last = list(group)[-1].slot
        shape.append((last.lane, min(1 << last.index.bit_length(), len(last.lane.slots))))
    held = sum(slot is not None for lane, rows in shape for slot in lane.slots[:rows])
    return tuple(shape) if held == len(segments) else None


class StaticStep:
    """One token for every slot of a shape, which attends to all positions of the slot up to its own.

    A slot without a row runs token 0 at its first position: a row that comes there writes that position before it
    reads it.
    """

    def __init__(self, shape: Shape, layers: dict[int, int], device: torch.device) -> None:
        self._shape, self._layers, self._device = shape, layers, device
        self._starts: dict[int, int] = {}
        self.tokens = 0
        for lane, rows in shape:
            self._starts[id(lane)] = self.tokens
            self.tokens += rows
        self._inputs = torch.zeros(2, self.tokens, dtype=torch.long, device=device)
        self.ids, self.positions = self._inputs[:1], self._inputs[1:]
        self.kept = torch.arange(self.tokens, device=device)
        self._parts: list[LanePart] = []

    def place(self, segment: Segment) -> int:
        """Number of a segment's token."""
        return self._starts[id(segment.slot.lane)] + segment.slot.index

    def fill(self, segments: Sequence[Segment]) -> None:
        """Set the tokens of the rows."""
        inputs = torch.zeros(2, self.tokens, dtype=torch.long)
        places = [self.place(segment) for segment in segments]
        inputs[:, places] = torch.tensor([[s.tokens[0] for s in segments], [s.begin for s in segments]])
        self._inputs.copy_(inputs)

    def begin(self) -> "StaticStep":
        """Itself, for one pass through the model's code: what its layers share is computed anew."""
        self._parts = []
        for lane, rows in self._shape:
            start = self._starts[id(lane)]
            places, slots = self.positions[0, start : start + rows], torch.arange(rows, device=self._device)
            self._parts.append(LanePart(lane, start, start + rows, slots, places, rows, lane.capacity))
        return self

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """As `PackedStep.attend`."""
        place = self._layers[layer]
        parts = [part.attend(place, query[0], key[0], value[0], options) for part in self._parts]
        return end_to_end(parts).unsqueeze(0)
