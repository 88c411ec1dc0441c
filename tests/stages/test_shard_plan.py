"""The planner: which records run together."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Mixture
from pipeline.stages.shard_plan import DEAD_KEY, ShardLimits, plan_shards, shard_of_rows

NAMES = [f"a{n}" for n in range(30)]
MIXTURES = st.one_of(
    st.just(DEAD_KEY),
    st.lists(st.sampled_from(NAMES), max_size=4, unique=True).map(
        lambda names: Mixture.of(dict.fromkeys(names, 1 / max(1, len(names)))).key
    ),
)
COUNTS = st.dictionaries(MIXTURES, st.integers(1, 200), max_size=60)
LIMITS = st.builds(ShardLimits, st.integers(1, 50), st.integers(1, 12))


def adapters(keys: list[str]) -> set[str]:
    return {name for key in keys if key != DEAD_KEY for name in Mixture.parse(key).adapters}


@given(COUNTS, LIMITS)
def test_every_record_is_in_one_shard_and_shards_are_bounded(counts: dict[str, int], limits: ShardLimits) -> None:
    shards = plan_shards(counts, limits)
    planned: Counter[str] = Counter()
    for shard in shards:
        keys = [key for key, _ in shard]
        assert len(keys) == len(set(keys))
        assert all(count > 0 for _, count in shard)
        assert 0 < sum(count for _, count in shard) <= limits.records
        largest = max(len(adapters([key])) for key in keys)
        assert len(adapters(keys)) <= max(limits.adapters, largest)
        planned.update(dict(shard))
    assert planned == Counter(counts)


@given(COUNTS, LIMITS)
def test_hot_mixtures_fill_shards_alone_and_no_shard_is_closed_without_need(
    counts: dict[str, int], limits: ShardLimits
) -> None:
    shards = plan_shards(counts, limits)
    alone = Counter(shard[0][0] for shard in shards if len(shard) == 1 and shard[0][1] == limits.records)
    for key, count in counts.items():
        assert alone[key] >= count // limits.records
    # A shard that is not full was closed for its adapters: at most one more than those needed anyway where all fit.
    if len(adapters(list(counts))) <= limits.adapters:
        assert len(shards) == -(-sum(counts.values()) // limits.records)


@given(st.lists(MIXTURES, max_size=300), LIMITS)
def test_each_row_has_the_shard_that_the_plan_gives_its_mixture(mixtures: list[str], limits: ShardLimits) -> None:
    keys = sorted(set(mixtures))
    codes = np.array([keys.index(mixture) for mixture in mixtures], np.int64)
    found = shard_of_rows(keys, codes, limits)
    planned = plan_shards(Counter(mixtures), limits)
    for number, shard in enumerate(planned):
        assert Counter(m for m, s in zip(mixtures, found.tolist(), strict=True) if s == number) == Counter(dict(shard))
    assert len(found) == len(mixtures)


def test_rare_mixtures_that_share_adapters_run_together() -> None:
    pairs = [Mixture.of({f"{group}{n}": 0.5, group: 0.5}).key for group in ("legal", "code", "news") for n in range(4)]
    shards = plan_shards(dict.fromkeys(pairs, 10), ShardLimits(100, 5))
    assert [len(shard) for shard in shards] == [4, 4, 4]
    for shard in shards:
        assert len(adapters([key for key, _ in shard])) == 5


def test_what_is_left_of_a_hot_mixture_joins_others() -> None:
    counts = {"hot:1.0": 950, "warm:1.0": 60, "rare:1.0": 1}
    shards = plan_shards(counts, ShardLimits(100, 8))
    assert shards[:9] == [[("hot:1.0", 100)]] * 9
    assert sorted(sum(count for _, count in shard) for shard in shards[9:]) == [11, 100]
