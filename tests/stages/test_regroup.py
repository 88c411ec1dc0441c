"""Blocks of routed records on their way to the generating actors: cut into shards, packed, unpacked."""

from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import DEAD_LETTER, DeadLetter, Mixture
from pipeline.settings import JobSettings
from pipeline.stages import regroup as module
from pipeline.stages.regroup import GenerateShards, Regroup, block_size, pack, unpack
from pipeline.stages.shard_plan import DEAD_KEY, ShardLimits
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.plan import plan_input
from pipeline.telemetry.incidents import Incidents
from tests.stages import default_job, tiny_pools
from tests.storage import memory_url, write_file
from tests.telemetry import local_incidents

MIXTURES = ["hot:1.0", "a0:0.5+shared:0.5", "a1:0.5+shared:0.5", "b:1.0", DEAD_KEY]
ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(MIXTURES), st.lists(st.integers(0, 70_000), max_size=3)), max_size=60
)
LIMITS = st.builds(ShardLimits, st.integers(1, 20), st.integers(1, 4))
ALL = ShardLimits(8192, 64)


def block_of(rows: list[tuple[int, str, list[int]]]) -> pa.Table:
    """A routed block of rows, each a window, a mixture and tokens; those without a mixture are dead."""
    windows, mixtures, tokens = zip(*rows, strict=True) if rows else ([], [], [])
    columns = {"window": pa.array(windows, pa.int32()), "mixture": pa.array(mixtures, pa.string())}
    columns |= {"row": pa.array(range(len(rows)), pa.int64()), "tokens": pa.array(tokens, pa.list_(pa.int32()))}
    dead = [vars(DeadLetter("route", "PromptTooLong", "")) if key == DEAD_KEY else None for key in mixtures]
    return pa.table(columns | {"dead": pa.array(dead, DEAD_LETTER)})


def shards_of(
    rows: pa.Table, limits: ShardLimits, incidents: Incidents | None = None, **changes: Any
) -> list[pa.Table]:
    """The shards of rows, by default of one of many full blocks."""
    values = {"block": rows.num_rows, "engines": 1} | changes
    packed = list(Regroup(limits, incidents=incidents or Incidents(), **values)(rows))
    assert [table.num_rows for table in packed] == [1] * len(packed), "each shard is one row, and a block of its own"
    return [unpack(table["records"][0].as_py()) for table in packed]


def prefixes(shard: pa.Table, mixture: str) -> list[list[int]]:
    return [row["tokens"] for row in shard.to_pylist() if row["mixture"] == mixture]


def sizes(rows: int, incidents: Incidents | None = None, most: int = 8192, **changes: Any) -> list[int]:
    """The sizes of the shards of a block with one mixture."""
    block = block_of([(0, "hot:1.0", [1])] * rows)
    return [shard.num_rows for shard in shards_of(block, ShardLimits(most, 64), incidents, **changes)]


@given(ROWS, LIMITS)
def test_each_row_is_in_one_shard_of_its_window(rows: list[tuple[int, str, list[int]]], limits: ShardLimits) -> None:
    block = block_of(rows)
    shards = shards_of(block, limits)
    for shard in shards:
        windows, keys = shard["window"].unique().to_pylist(), shard["mixture"].unique().to_pylist()
        assert len(windows) == 1
        assert 0 < shard.num_rows <= limits.records
        adapters = [Mixture.parse(key).adapters if key else () for key in keys]
        assert len({name for names in adapters for name in names}) <= max(limits.adapters, *map(len, adapters))
    together = pa.concat_tables(shards) if shards else block
    assert together.sort_by("row") == block
    is_dead = [shard["dead"].null_count == 0 for shard in shards]
    assert is_dead == sorted(is_dead, reverse=True), "dead letters are committed before any engine has answered"
    assert all(shard["dead"].null_count in (0, shard.num_rows) for shard in shards)


@given(ROWS, LIMITS)
def test_mixtures_stay_together_and_so_do_equal_prefixes(
    rows: list[tuple[int, str, list[int]]], limits: ShardLimits
) -> None:
    shards = shards_of(block_of(rows), limits)
    for shard in shards:
        runs = [key for key, _ in groupby(shard["mixture"].to_pylist())]
        assert len(runs) == len(set(runs))
    for window in range(3):
        for key in MIXTURES:
            own = [prefixes(shard, key) for shard in shards if shard["window"][0].as_py() == window]
            flat = [tokens for part in own for tokens in part]
            assert flat == sorted(flat), "from shard to shard too"


def test_prompts_are_sorted_by_their_first_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PREFIX_TOKENS", 2)
    few_shot, others = [7, 8, 9, 9], [[7, 8, 1], [300, 1], [7], [], [7, 9]]
    rows = [(0, "hot:1.0", tokens) for tokens in (few_shot, *others)]
    [shard] = shards_of(block_of(rows), ALL)
    assert prefixes(shard, "hot:1.0") == [[], [7], few_shot, [7, 8, 1], [7, 9], [300, 1]]


def test_a_part_of_a_larger_table_is_cut_as_it_is() -> None:
    """Slices share the buffers of their table, and chunked tables have several."""
    rows = [(n % 2, MIXTURES[n % 3], [n % 5, n]) for n in range(60)]
    whole = block_of(rows)
    part = pa.concat_tables([whole.slice(10, 7), whole.slice(17, 23)])
    assert shards_of(part, ALL) == shards_of(pa.Table.from_pylist(part.to_pylist(), schema=part.schema), ALL)


def test_a_block_without_rows_has_no_shards() -> None:
    assert shards_of(block_of([]), ALL) == []


def test_a_shard_is_some_seconds_of_work_at_the_measured_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    incidents = local_incidents(monkeypatch)
    assert sizes(2000, incidents) == [512, 512, 512, 464], "no speed is known"
    incidents._actor.counter.add_call("route", 1.0, 10**6)
    incidents._actor.counter.add_call("generate", 10.0, 100)
    assert sizes(500, incidents) == [200, 200, 100]
    incidents._actor.counter.add_call("generate", 0.0, 300)
    assert sizes(2000, incidents) == [800, 800, 400]
    assert sizes(2000, incidents, most=300) == [300] * 6 + [200], "shuffle.shard_records is the most"


def test_a_slow_engine_still_gets_about_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    incidents = local_incidents(monkeypatch)
    incidents._actor.counter.add_call("generate", 1000.0, 1)
    assert sizes(200, incidents) == [64, 64, 64, 8]
    assert sizes(200, incidents, most=50) == [50] * 4


def test_shards_of_the_last_block_get_smaller() -> None:
    several = [*[512] * 8, 404, *[282] * 7, 276, *[141] * 7, 138, *[71] * 7, 66, *[64] * 8, 50]
    assert sizes(9000, block=10_000, engines=4) == several, "the last block of many"
    assert sizes(1000, block=1001) == [250, 250, 125, 125, 64, 64, 64, 58]
    assert sizes(1000, block=1000) == [512, 488], "others follow"
    assert sizes(300, block=1000, engines=8) == [64] * 4 + [44]
    assert sizes(3, block=1000, engines=8, most=1) == [1] * 3


@given(ROWS, LIMITS, st.integers(1, 3))
def test_each_row_of_the_last_block_is_in_one_shard(
    rows: list[tuple[int, str, list[int]]], limits: ShardLimits, engines: int
) -> None:
    block = block_of(rows)
    shards = shards_of(block, limits, block=len(rows) + 1, engines=engines)
    assert all(0 < shard.num_rows <= limits.records for shard in shards)
    assert (pa.concat_tables(shards) if shards else block).sort_by("row") == block


def test_each_packed_shard_is_answered_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    class Multiplies:
        def __init__(self, settings: JobSettings, device: str, threads: int, incidents: Incidents) -> None:
            self.times = threads

        def __call__(self, table: pa.Table) -> pa.Table:
            return pa.table({"row": np.asarray(table["row"]) * self.times})

    packed = pa.concat_tables([pack(pa.table({"row": [2, 1]})), pack(pa.table({"row": [3]}))])
    monkeypatch.setattr(module, "threads_here", lambda pools: 10)
    actor = GenerateShards(Multiplies, default_job("in", "out"), "cpu", tiny_pools(), Incidents())
    assert [answer["row"].to_pylist() for answer in actor(packed)] == [[20, 10], [30]]


@pytest.mark.parametrize(("length", "fitting"), [(500, 500_000), (32_000, 8_000)])
def test_blocks_of_long_records_have_fewer_of_them(length: int, fitting: int) -> None:
    line = b'{"prompt": "' + b"x" * length + b'"}\n'
    write_file(f"{(url := memory_url())}/a.jsonl", line * 20)
    assert block_size(10**8, 10**8, plan_input(url, 100, Columns())) == pytest.approx(fitting, rel=0.1)


@given(st.integers(1, 10**8), st.integers(20_000, 10**5))
def test_the_last_block_is_a_little_smaller_than_the_others(records: int, most: int) -> None:
    write_file(f"{(url := memory_url())}/a.jsonl", b'{"prompt": "a"}\n')
    block = block_size(records, most, plan_input(url, 100, Columns()))
    others, last = divmod(records, block)
    assert block <= max(most, records + 1)
    assert block - others - 1 <= last < block
    assert last > 0
