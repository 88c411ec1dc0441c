"""The KV cache: rows keep their keys and values in slots of a few sizes, within a budget of positions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

BLOCK = 64  # positions of the smallest slot

Buffers = tuple[torch.Tensor, torch.Tensor]
"""Keys [slots x heads x capacity x dim] and values of a layer. Heads come before positions, as attention reads them."""


@dataclass(frozen=True)
class LayerShape:
    """What one position of a layer holds. ``window``: positions that a token sees, itself included; None: all.

    ``capped``: scores are bounded before the softmax.
    """

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    window: int | None = None
    capped: bool = False

    @property
    def bytes(self) -> int:
        """Bytes of a position."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(eq=False)
class Slot:
    """A row's place. It moves when its lane is compacted; ``length``: positions that were written, from 0."""

    lane: "Lane"
    index: int
    length: int = 0

    def views(self, stop: int) -> Iterator[Buffers]:
        """Keys and values [heads x stop x dim] of each layer."""
        for keys, values in self.lane.buffers:
            yield keys[self.index, :, :stop], values[self.index, :, :stop]

    def fill(self, parts: Sequence[Buffers], stop: int) -> None:
        """Write the first ``stop`` positions of keys and values [heads x positions x dim]."""
        for held, given in zip(self.views(stop), parts, strict=True):
            for mine, theirs in zip(held, given, strict=True):
                mine.copy_(theirs[:, :stop])
        self.length = max(self.length, stop)


class Lane:
    """All slots of one capacity. Rows of like lengths lie together, so that one attention call reads few gaps."""

    def __init__(self, capacity: int, shapes: Sequence[LayerShape], device: torch.device) -> None:
        self.capacity = capacity
        self.generation = 0  # of the buffers
        self.slots: list[Slot | None] = []
        self.buffers: list[Buffers] = [
            (
                torch.zeros(0, shape.heads, capacity, shape.key_dim, dtype=shape.dtype, device=device),
                torch.zeros(0, shape.heads, capacity, shape.value_dim, dtype=shape.dtype, device=device),
            )
            for shape in shapes
        ]

    @property
    def positions(self) -> int:
        """Positions that memory is held for."""
        return len(self.slots) * self.capacity

    @property
    def free(self) -> int:
        """Slots without a row."""
        return self.slots.count(None)

    def take(self) -> Slot | None:
        """The first free slot."""
        if None not in self.slots:
            return None
        slot = Slot(self, self.slots.index(None))
        self.slots[slot.index] = slot
        return slot

    def release(self, slot: Slot) -> None:
        """Free a slot. It is cleared: masked positions are read too, and NaN times a weight of zero is NaN."""
        for keys, values in slot.views(slot.length):
            keys.zero_()
            values.zero_()
        self.slots[slot.index] = None

    def compact(self) -> None:
        """Move the last rows into free slots, so that rows lie in the first slots."""
        used = len(self.slots) - self.free
        for slot in [slot for slot in self.slots[used:] if slot]:
            into = self.take()
            assert into is not None
            into.fill(list(slot.views(slot.length)), slot.length)
            self.release(slot)
            slot.index = into.index
            self.slots[slot.index] = slot

    def resize(self, count: int) -> None:
        """Hold memory for ``count`` slots; those cut off must be free."""
        kept = min(count, len(self.slots))
        self.generation += 1
        for place, pair in enumerate(self.buffers):
            self.buffers[place] = (_resized(pair[0], count, kept), _resized(pair[1], count, kept))
        self.slots = self.slots[:kept] + [None] * (count - kept)


def _resized(held: torch.Tensor, count: int, kept: int) -> torch.Tensor:
    buffer = held.new_zeros(count, *held.shape[1:])
    buffer[:kept] = held[:kept]
    return buffer


class SlotCache:
    """Slots for rows, never of more than ``limit`` positions together (those in ``others`` included).

    Capacities are 64, 128, 192, 256, 384, 512 ...: a row that outgrows its slot moves to a larger one. A slot is
    contiguous, so that attention reads it in place: a paged cache would be gathered at each step, or need a kernel of
    its own (PagedAttention, arXiv 2309.06180).

    ``others``: positions that are held elsewhere; ``reclaim`` drops some of them, or says that there are none.
    """

    def __init__(self, shapes: Sequence[LayerShape], device: torch.device, limit: int) -> None:
        self.shapes = shapes
        self.device = device
        self.limit = limit
        self.lanes: dict[int, Lane] = {}
        self.others: Callable[[], int] = lambda: 0
        self.reclaim: Callable[[], bool] = lambda: False

    @property
    def positions(self) -> int:
        """Positions that memory is held for, those of ``others`` included."""
        return sum(lane.positions for lane in self.lanes.values()) + self.others()

    def reserve(self, length: int) -> Slot | None:
        """A slot for at least ``length`` positions; None where the budget has no room for it now."""
        capacity = self._capacity(length)
        if capacity < length:
            return None
        if capacity not in self.lanes:
            self.lanes[capacity] = Lane(capacity, self.shapes, self.device)
        lane = self.lanes[capacity]
        return lane.take() or (lane.take() if self._make_room(lane) else None)

    def grow(self, slot: Slot, length: int, wanted: int) -> Slot | None:
        """The slot, or a larger one with its contents, for ``length`` positions or, if there is room, ``wanted``."""
        if length <= slot.lane.capacity:
            return slot
        larger = self.reserve(wanted) or self.reserve(length)
        if larger is not None:
            larger.fill(list(slot.views(slot.length)), slot.length)
            self.release(slot)
        return larger

    def release(self, slot: Slot) -> None:
        """Give a slot back."""
        slot.lane.release(slot)

    def compact(self) -> None:
        """Close the gaps that rows left, so that attention does not read them."""
        for lane in self.lanes.values():
            lane.compact()

    def _capacity(self, length: int) -> int:
        blocks = 1
        while blocks * BLOCK < length:
            # Powers of two, and from two on the numbers halfway between: less than half of a slot is unused.
            blocks = blocks * 4 // 3 if blocks % 3 == 0 else blocks * 3 // 2 if blocks > 1 else 2
        size = blocks * BLOCK
        return min(size, self.limit)

    def _make_room(self, lane: Lane) -> bool:
        """Grow a lane by half, or by the one slot that is needed."""
        for more in {max(1, len(lane.slots) // 2): None, 1: None}:
            if self._fits(more * lane.capacity):
                lane.resize(len(lane.slots) + more)
                return True
        self._trim()
        while not self._fits(lane.capacity):
            if not self.reclaim():
                return False
        lane.resize(len(lane.slots) + 1)
        return True

    def _fits(self, positions: int) -> bool:
        return self.positions + positions <= self.limit

    def _trim(self) -> None:
        """Give the memory of free slots back."""
        for lane in self.lanes.values():
            if lane.free:
                lane.compact()
                lane.resize(len(lane.slots) - lane.free)
