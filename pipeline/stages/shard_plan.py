"""Plan which records of a window run together: frequent mixtures fill shards alone, rare ones share adapters."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.records import Mixture

DEAD_KEY = ""  # the mixture of dead letters, which go into shards of their own


@dataclass(frozen=True)
class ShardLimits:
    """The maximum size of a shard. ``adapters``: of all its mixtures together, unless one mixture alone has more."""

    records: int
    adapters: int


Piece = tuple[str, int]
"""A mixture's key, and the number of its records in a shard."""


def plan_shards(counts: Mapping[str, int], limits: ShardLimits) -> list[list[Piece]]:
    """Divide the records of a window, counted by their mixture's key, into shards.

    A mixture with enough records fills shards alone, which the engine runs at the speed of the base model. The others
    are sorted so that mixtures with common adapters are neighbours, and cut where a shard is full or would have too
    many adapters. The largest shards come first, so that the job does not wait for one at the end.
    """
    full = [[(key, limits.records)] for key, count in sorted(counts.items()) for _ in range(count // limits.records)]
    rest = {key: count % limits.records for key, count in counts.items() if count % limits.records}
    packed = list(_packed(rest, limits))
    return full + sorted(packed, key=lambda shard: -sum(count for _, count in shard))


def shard_of_rows(keys: Sequence[str], codes: np.ndarray, limits: ShardLimits) -> np.ndarray:
    """Return the shard of each row [rows]. ``codes`` [rows]: the index of its mixture's key in ``keys``."""
    key_counts = np.bincount(codes, minlength=len(keys))
    counts = {key: int(count) for key, count in zip(keys, key_counts, strict=True) if count}
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
    shard_adapters: frozenset[str] = frozenset()
    free = limits.records
    for key in _neighbours(counts, adapters):
        left = counts[key]
        while left:
            joined = shard_adapters | adapters[key]
            if shard and (free == 0 or len(joined) > max(limits.adapters, len(adapters[key]))):
                yield shard
                shard, shard_adapters, free = [], frozenset(), limits.records
                continue
            taken = min(left, free)
            shard.append((key, taken))
            shard_adapters, free, left = joined, free - taken, left - taken
    if shard:
        yield shard


def _neighbours(counts: Mapping[str, int], adapters: Mapping[str, frozenset[str]]) -> list[str]:
    """Sort keys so that mixtures with common adapters are neighbours: by their adapters, the most frequent first."""
    records: Counter[str] = Counter()
    for key, count in counts.items():
        records.update(dict.fromkeys(adapters[key], count))
    rank = {name: index for index, name in enumerate(sorted(records, key=lambda name: (-records[name], name)))}
    return sorted(counts, key=lambda key: (sorted(rank[name] for name in adapters[key]), key))


def _adapters(key: str) -> frozenset[str]:
    return frozenset() if key == DEAD_KEY else frozenset(Mixture.parse(key).adapters)
