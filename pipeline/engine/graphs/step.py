"""A decode step of fixed shape and memory, which can be recorded."""

from collections.abc import Sequence
from itertools import groupby

import torch

from pipeline.engine.attention.packed import Step
from pipeline.engine.attention.sdpa import DecodePart
from pipeline.engine.attention.segment import Segment
from pipeline.engine.attention.slots import Lane

Shape = tuple[tuple[Lane, int], ...]
"""The lanes of a step, and how many of their first slots run."""


def static_shape(segments: Sequence[Segment]) -> Shape | None:
    """Return the shape of a step in which every sequence runs one token; None for other steps.

    A power of two of each lane's slots runs, or all of them, so that there are few shapes. None too if one of these
    slots holds a sequence that does not run now, because it would be overwritten.
    """
    if not all(len(s.tokens) == 1 and s.positions is None and s.kept for s in segments):
        return None
    ordered = sorted(segments, key=lambda s: (s.slot.lane.capacity, s.slot.index))
    shape = []
    for _, group in groupby(ordered, key=lambda s: id(s.slot.lane)):
        last = list(group)[-1].slot
        shape.append((last.lane, min(1 << last.index.bit_length(), len(last.lane.slots))))
    in_use = sum(slot is not None for lane, slot_count in shape for slot in lane.slots[:slot_count])
    return tuple(shape) if in_use == len(segments) else None


class StaticStep(Step):
    """One token for every slot of a shape, which attends to all positions of the slot up to its own.

    A free slot runs token 0 at its first position: a sequence that gets the slot writes that position before it reads
    it.
    """

    def __init__(self, shape: Shape, layers: dict[int, int], device: torch.device) -> None:
        self._shape, self._layers, self._device = shape, layers, device
        self._starts: dict[int, int] = {}
        self.num_tokens = 0
        for lane, slot_count in shape:
            self._starts[id(lane)] = self.num_tokens
            self.num_tokens += slot_count
        self._inputs = torch.zeros(2, self.num_tokens, dtype=torch.long, device=device)
        self.ids, self.positions = self._inputs[:1], self._inputs[1:]
        self.kept = torch.arange(self.num_tokens, device=device)

    def index_of(self, segment: Segment) -> int:
        """Return the index of a segment's token."""
        return self._starts[id(segment.slot.lane)] + segment.slot.index

    def fill(self, segments: Sequence[Segment]) -> None:
        """Set the tokens of the sequences."""
        inputs = torch.zeros(2, self.num_tokens, dtype=torch.long)
        indices = [self.index_of(segment) for segment in segments]
        inputs[:, indices] = torch.tensor([[s.tokens[0] for s in segments], [s.start for s in segments]])
        self._inputs.copy_(inputs)

    def start_pass(self) -> None:
        """Prepare for a pass through the model's code: drop the masks that its layers shared in the last one."""
        parts = []
        for lane, slot_count in self._shape:
            start = self._starts[id(lane)]
            stop, slots = start + slot_count, torch.arange(slot_count, device=self._device)
            positions = self.positions[0, start:stop]
            parts.append(DecodePart(lane, start, stop, slots, positions, slot_count, lane.capacity))
        self._parts = parts
