import json
from collections import Counter
from dataclasses import asdict

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.commit import counts as counts_module
from pipeline.storage.commit.counts import Counts, count_rows, sum_counts
from pipeline.storage.commit.markers import Shard, decode_shard, encode_shard
from tests.storage.commit.test_markers import shard_of

_PARTS = st.lists(st.lists(st.integers(0, 40), max_size=30), max_size=12)


def of_mixtures(part: list[int]) -> Counts:
    return Counts(data=len(part), mixtures=dict(Counter(f"m{number}" for number in part)))


def test_answered_conversations_that_end_with_the_assistant_are_counted() -> None:
    made = {"prompt_tokens": 1, "completion_tokens": 1, "fallback": False, "mixture": "base", "finish_reason": "stop"}
    data = pa.Table.from_pylist([made | {"last_assistant": last} for last in (True, False, True)])
    counts, more = count_rows(data, pa.table({})), count_rows(data.slice(0, 1), pa.table({}))
    assert (counts.last_assistant, (counts + more).last_assistant) == (2, 3)


@given(_PARTS)
def test_more_mixtures_than_are_kept_are_counted_together(parts: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts_module, "_MAX_MIXTURES", 5)
        # One in half of all records: it is always among the most frequent.
        found = sum_counts(of_mixtures(part + [99] * (len(part) + 1)) for part in parts)
    everything = Counter(f"m{number}" for part in parts for number in part)
    assert len(found.mixtures) <= 5
    assert sum(found.mixtures.values()) + found.rare == found.data
    assert all(count <= everything[name] for name, count in found.mixtures.items() if name != "m99")
    assert found.mixtures.get("m99", 0) == sum(len(part) + 1 for part in parts)


@given(_PARTS)
def test_few_mixtures_are_counted_exactly_in_any_order(parts: list[list[int]]) -> None:
    found = sum_counts(of_mixtures(part) for part in parts)
    assert found == sum_counts(of_mixtures(part) for part in reversed(parts)) == sum(map(of_mixtures, parts), Counts())
    assert (found.mixtures, found.rare) == (Counter(f"m{n}" for part in parts for n in part), 0)


def test_many_mixtures_take_the_space_of_a_thousand() -> None:
    found = sum_counts(Counts(data=500, mixtures={f"{part}-{n}": 1 for n in range(500)}) for part in range(200))
    assert (found.data, len(found.mixtures), found.rare) == (100_000, 1000, 99_000)


def test_markers_of_before_there_were_rare_ones_are_read() -> None:
    shard: Shard = shard_of("w000000-a-000000", [1, 2])
    values = json.loads(encode_shard(shard))
    del values["counts"]["rare"]
    assert asdict(decode_shard(json.dumps(values).encode()).counts) == asdict(Counts())
