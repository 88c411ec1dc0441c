"""Which records of a window run together: hot mixtures fill shards of their own, rare ones that share adapters join."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.records import Mixture

DEAD_KEY = ""  # where the mixture of a dead letter would be: dead letters travel together


@dataclass(frozen=True)
class ShardLimits:
    """``records`` of a shard at most. ``adapters``: of all its mixtures together, unless one mixture alone has more.

    ``mixtures``: distinct ones of a shard at most; 0: any number.
    """

    records: int
    adapters: int
    mixtures: int = 0


Piece = tuple[str, int]
"""A mixture's key, and how many of its records a shard takes."""


def plan_shards(counts: Mapping[str, int], limits: ShardLimits) -> list[list[Piece]]:
    """Divide the records of a window, counted by their mixture's key, into shards.

    A mixture with enough records fills shards alone: the engine runs those at the speed of the base model. What is left
    of each is put in an order in which mixtures with common adapters are neighbours, and cut where a shard is full or
    would have too many adapters or mixtures. The largest shards come first, so that none is waited for last.
    """
    full = [[(key, limits.records)] for key, count in sorted(counts.items()) for _ in range(count // limits.records)]
    rest = {key: count % limits.records for key, count in counts.items() if count % limits.records}
    packed = list(_packed(rest, limits))
    return full + sorted(packed, key=lambda shard: -sum(count for _, count in shard))


def shard_of_rows(keys: Sequence[str], codes: np.ndarray, limits: ShardLimits) -> np.ndarray:
    """The number of each row's shard [rows]; ``codes`` [rows]: the place of its mixture's key in ``keys``."""
    found = np.bincount(codes, minlength=len(keys))
    counts = {key: int(count) for key, count in zip(keys, found, strict=True) if count}
    numbers: dict[str, list[np.ndarray]] = {key: [] for key in counts}
    for number, shard in enumerate(plan_shards(counts, limits)):
        for key, count in shard:
            numbers[key].append(np.full(count, number, np.int32))
    shards = np.empty(len(codes), np.int32)
    by_mixture = np.argsort(codes, kind="stable")
    shards[by_mixture] = np.concatenate([shards[:0], *(part for key in keys for part in numbers.get(key, []))])
    return shards


def _packed(counts: Mapping[str, int], limits: ShardLimits) -> Iterator[list[Piece]]:
    adapters = {key: _adapters(key) for key in counts}
    shard: list[Piece] = []
    held: frozenset[str] = frozenset()
    room = limits.records
    for key in _neighbours(counts, adapters):
        left = counts[key]
        while left:
            joined = held | adapters[key]
            many = len(joined) > max(limits.adapters, len(adapters[key])) or 0 < limits.mixtures <= len(shard)
            if shard and (room == 0 or many):
                yield shard
                shard, held, room = [], frozenset(), limits.records
                continue
            taken = min(left, room)
            shard.append((key, taken))
            held, room, left = joined, room - taken, left - taken
    if shard:
        yield shard


def _neighbours(counts: Mapping[str, int], adapters: Mapping[str, frozenset[str]]) -> list[str]:
    """Keys in an order that keeps those with common adapters together: by their adapters, the most common first."""
    records: Counter[str] = Counter()
    for key, count in counts.items():
        records.update(dict.fromkeys(adapters[key], count))
    rank = {name: place for place, name in enumerate(sorted(records, key=lambda name: (-records[name], name)))}
    return sorted(counts, key=lambda key: (sorted(rank[name] for name in adapters[key]), key))


def _adapters(key: str) -> frozenset[str]:
    return frozenset() if key == DEAD_KEY else frozenset(Mixture.parse(key).adapters)
