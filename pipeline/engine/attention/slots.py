"""The KV cache: slots of a few sizes for keys and values of sequences, within a budget of positions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

BLOCK = 64  # positions of the smallest slot

Buffers = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of a layer [slots x heads x capacity x dim]. Heads come before positions, as attention reads them."""


@dataclass(frozen=True)
class LayerShape:
    """Shape of one position of a layer. ``window``: positions that a token attends to, itself included; None: all.

    ``capped``: attention scores are capped before the softmax.
    """

    heads: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype
    window: int | None = None
    capped: bool = False

    @property
    def bytes(self) -> int:
        """Bytes per position."""
        return self.heads * (self.key_dim + self.value_dim) * self.dtype.itemsize


@dataclass(eq=False)
class Slot:
    """Memory of one sequence. ``index`` changes when its lane is compacted; ``length``: positions written so far."""

    lane: "Lane"
    index: int
    length: int = 0

    def views(self, stop: int) -> Iterator[Buffers]:
        """Keys and values [heads x stop x dim] of each layer."""
        for keys, values in self.lane.buffers:
            yield keys[self.index, :, :stop], values[self.index, :, :stop]

    def fill(self, parts: Sequence[Buffers], stop: int) -> None:
        """Write the first ``stop`` positions of keys and values [heads x positions x dim]."""
        for targets, sources in zip(self.views(stop), parts, strict=True):
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source[:, :stop])
        self.length = max(self.length, stop)


class Lane:
    """All slots of one capacity. Sequences of similar length share a lane, so attention reads little padding."""

    def __init__(self, capacity: int, shapes: Sequence[LayerShape], device: torch.device) -> None:
        self.capacity = capacity
        self.generation = 0  # counts reallocations of the buffers
        self.slots: list[Slot | None] = []
        self.buffers: list[Buffers] = [
            (
                torch.zeros(0, shape.heads, capacity, shape.key_dim, dtype=shape.dtype, device=device),
                torch.zeros(0, shape.heads, capacity, shape.value_dim, dtype=shape.dtype, device=device),
            )
            for shape in shapes
        ]

    @property
    def free_count(self) -> int:
        """Number of slots without a sequence."""
        return self.slots.count(None)

    def allocate(self) -> Slot | None:
        """Allocate the first free slot; None if all are in use."""
        if None not in self.slots:
            return None
        slot = Slot(self, self.slots.index(None))
        self.slots[slot.index] = slot
        return slot

    def release(self, slot: Slot) -> None:
        """Free a slot and zero it: attention reads masked positions too, and NaN times a weight of zero is NaN."""
        for keys, values in slot.views(slot.length):
            keys.zero_()
            values.zero_()
        self.slots[slot.index] = None

    def compact(self) -> None:
        """Move the last sequences into free slots, so that the first slots are the used ones."""
        used = len(self.slots) - self.free_count
        for slot in [slot for slot in self.slots[used:] if slot]:
            target = self.allocate()
            assert target is not None
            target.fill(list(slot.views(slot.length)), slot.length)
            self.release(slot)
            slot.index = target.index
            self.slots[slot.index] = slot

    def resize(self, count: int) -> None:
        """Reallocate the buffers for ``count`` slots; removed slots must be free."""
        kept = min(count, len(self.slots))
        self.generation += 1
        for layer, (keys, values) in enumerate(self.buffers):
            self.buffers[layer] = (_resized(keys, count, kept), _resized(values, count, kept))
        self.slots = self.slots[:kept] + [None] * (count - kept)


def _resized(buffer: torch.Tensor, count: int, kept: int) -> torch.Tensor:
    resized = buffer.new_zeros(count, *buffer.shape[1:])
    resized[:kept] = buffer[:kept]
    return resized


class Evictable(Protocol):
    """Memory outside of the slots that counts against the cache's budget, and can be freed for it."""

    @property
    def positions(self) -> int:
        """Positions that it holds."""

    def evict_oldest(self) -> bool:
        """Free a part of it; False if it holds nothing."""


class SlotCache:
    """Slots for sequences, within a budget of ``limit`` positions that ``evictable`` memory shares.

    Capacities are 64, 128, 192, 256, 384, 512 ...: a sequence that outgrows its slot moves to a larger one. A slot is
    contiguous, so that attention reads it in place: a paged cache would be gathered at each step, or need a kernel of
    its own (PagedAttention, arXiv 2309.06180).
    """

    def __init__(
        self, shapes: Sequence[LayerShape], device: torch.device, limit: int, evictable: Evictable | None = None
    ) -> None:
        self.shapes, self.device, self.limit = shapes, device, limit
        self.lanes: dict[int, Lane] = {}
        self._evictable = evictable

    @property
    def positions(self) -> int:
        """Positions that slots and evictable memory hold."""
        evictable = self._evictable.positions if self._evictable else 0
        return sum(len(lane.slots) * lane.capacity for lane in self.lanes.values()) + evictable

    def allocate(self, length: int) -> Slot | None:
        """Allocate a slot for at least ``length`` positions; None if it does not fit the budget now."""
        capacity = self._capacity(length)
        if capacity < length:
            return None
        if capacity not in self.lanes:
            self.lanes[capacity] = Lane(capacity, self.shapes, self.device)
        lane = self.lanes[capacity]
        return lane.allocate() or (lane.allocate() if self._grow_lane(lane) else None)

    def grow(self, slot: Slot, length: int, preferred: int) -> Slot | None:
        """Return the slot, or a larger copy of ``preferred`` or ``length`` positions; None if the budget is full."""
        if length <= slot.lane.capacity:
            return slot
        larger = self.allocate(preferred) or self.allocate(length)
        if larger is not None:
            larger.fill(list(slot.views(slot.length)), slot.length)
            slot.lane.release(slot)
        return larger

    def compact(self) -> None:
        """Close the gaps of freed slots, so that attention does not read them."""
        for lane in self.lanes.values():
            lane.compact()

    def _capacity(self, length: int) -> int:
        blocks = 1
        while blocks * BLOCK < length:
            # Powers of two, and from two on the numbers halfway between: less than half of a slot is unused.
            blocks = blocks * 4 // 3 if blocks % 3 == 0 else blocks * 3 // 2 if blocks > 1 else 2
        return min(blocks * BLOCK, self.limit)

    def _grow_lane(self, lane: Lane) -> bool:
        """Grow a lane by half, or by one slot, freeing unused memory if needed; False if it exceeds the budget."""
        for added in {max(1, len(lane.slots) // 2): None, 1: None}:
            if self._has_budget(added * lane.capacity):
                lane.resize(len(lane.slots) + added)
                return True
        for other in self.lanes.values():
            if other.free_count:
                other.compact()
                other.resize(len(other.slots) - other.free_count)
        while not self._has_budget(lane.capacity):
            if not (self._evictable and self._evictable.evict_oldest()):
                return False
        lane.resize(len(lane.slots) + 1)
        return True

    def _has_budget(self, positions: int) -> bool:
        return self.positions + positions <= self.limit
