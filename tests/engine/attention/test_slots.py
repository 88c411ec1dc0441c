"""The slot cache under any sequence of requests: contents stay, freed slots are clean, the budget holds."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.engine.attention.slots import BLOCK, LayerShape, Slot, SlotCache
from tests import examples

SHAPES = [LayerShape(2, 3, 5, torch.float32), LayerShape(1, 4, 4, torch.float32)]


def write(slot: Slot, mark: float, start: int, stop: int) -> None:
    """Fill positions with numbers that tell row, layer and position."""
    for layer, (keys, values) in enumerate(slot.views(stop)):
        numbers = mark * 1e6 + layer * 1e4 + torch.arange(start, stop)
        keys[:, start:] = numbers[:, None]
        values[:, start:] = -numbers[:, None]
    slot.length = stop


def check(slot: Slot, mark: float, length: int) -> None:
    for layer, (keys, values) in enumerate(slot.views(length)):
        numbers = (mark * 1e6 + layer * 1e4 + torch.arange(length))[:, None]
        assert torch.equal(keys, numbers.expand_as(keys))
        assert torch.equal(values, -numbers.expand_as(values))


def held(cache: SlotCache) -> int:
    """Positions that tensors are there for."""
    return sum(lane.buffers[0][0].shape[0] * lane.capacity for lane in cache.lanes.values())


class Evictable:
    """Memory outside of the slots, evicted all at once."""

    def __init__(self, positions: int) -> None:
        self.positions = positions

    def evict_oldest(self) -> bool:
        had_some = self.positions > 0
        self.positions = 0
        return had_some


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["allocate", "grow", "release", "compact"]), st.integers(1, 400)), max_size=40
)


@settings(max_examples=examples(60))
@given(actions=ACTIONS, limit=st.integers(64, 1500), others=st.integers(0, 300))
def test_contents_stay_and_the_budget_holds(actions: list[tuple[str, int]], limit: int, others: int) -> None:
    evictable = Evictable(min(others, limit))
    cache = SlotCache(SHAPES, torch.device("cpu"), limit, evictable)
    rows: dict[int, tuple[Slot, int]] = {}
    for number, (action, size) in enumerate(actions):
        if action == "allocate":
            slot = cache.allocate(size)
            if slot is not None:
                assert slot.lane.capacity >= size
                assert all(not part.any() for pair in slot.views(slot.lane.capacity) for part in pair)
                write(slot, number, 0, size)
                rows[number] = (slot, size)
            else:
                assert rows or size > limit
        elif rows and action in ("grow", "release"):
            mark = [*rows][size % len(rows)]
            slot, length = rows.pop(mark)
            if action == "release":
                slot.lane.release(slot)
            else:
                larger = cache.grow(slot, length + size, length + 2 * size)
                if larger is not None:
                    write(larger, mark, length, length + size)
                rows[mark] = (larger or slot, length + size if larger else length)
        elif action == "compact":
            cache.compact()
            for lane in cache.lanes.values():
                assert None not in lane.slots[: len(lane.slots) - lane.free_count]
        assert cache.positions == held(cache) + evictable.positions <= limit
        for mark, (slot, length) in rows.items():
            check(slot, mark, length)


def test_less_than_half_of_a_slot_is_unused() -> None:
    cache = SlotCache(SHAPES, torch.device("cpu"), 10**6)
    sizes = set()
    for length in range(1, 5000, 7):
        slot = cache.allocate(length)
        assert slot is not None
        assert length <= slot.lane.capacity < max(2 * length, BLOCK + 1)
        sizes.add(slot.lane.capacity)
        slot.lane.release(slot)
    assert sorted(sizes)[:6] == [64, 128, 192, 256, 384, 512]
    assert len(sizes) < 16
