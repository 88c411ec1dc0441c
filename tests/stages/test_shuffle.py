"""Shards on their way through Ray Data: packed, cut, unpacked."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.stages import shuffle
from pipeline.stages.shard_plan import ShardLimits

LIMITS = ShardLimits(2, 10)


def rows(numbers: list[int], shards: list[int]) -> pa.Table:
    return pa.table(
        {
            "row": pa.array(numbers, pa.int64()),
            "mixture": [f"m{n % 2}" for n in numbers],
            "tokens": [[n] * n for n in numbers],
            "shard": pa.array(shards, pa.int32()),
        }
    )


def test_a_partition_is_cut_into_its_shards_with_each_mixture_together() -> None:
    table = rows([5, 4, 3, 2, 1, 0, 9], [7, 2, 7, 7, 2, 2, -1])
    packed = list(shuffle._cut(table, LIMITS))
    found = [(part["shard"][0].as_py(), shuffle.unpack(part["records"][0].as_py())) for part in packed]
    assert [(number, part["row"].to_pylist()) for number, part in found] == [
        (-1, [9]),
        (2, [4, 0]),
        (2, [1]),
        (7, [2, 5]),
        (7, [3]),
    ]
    assert found[-1][1]["tokens"].to_pylist() == [[3, 3, 3]]
    assert "shard" not in found[0][1].schema.names
    assert list(shuffle._cut(table.slice(0, 0), LIMITS)) == []


def test_each_packed_shard_is_answered_for_itself() -> None:
    class Doubles:
        def __init__(self, times: int) -> None:
            self.times = times

        def __call__(self, table: pa.Table) -> pa.Table:
            return pa.table({"row": np.asarray(table["row"]) * self.times})

    table = rows([1, 2, 3], [0, 0, 1])
    packed = pa.concat_tables(shuffle._cut(table, ShardLimits(10, 10)))
    actor = shuffle.GenerateShards(Doubles, 10)
    assert [answer["row"].to_pylist() for answer in actor(packed)] == [[20, 10], [30]]


@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("at_once", [0, 1000], ids=["shuffled", "by one task"])
def test_all_rows_of_a_window_come_out_in_planned_shards(at_once: int) -> None:
    import ray

    # Half of the rows have one mixture; a name holds two weights, so that adapters are shared.
    mixtures = ["hot:1.0" if n % 2 else f"a{n % 7}:0.5+shared:0.5" for n in range(300)]
    table = pa.table({"row": pa.array(range(300), pa.int64()), "mixture": mixtures})
    routed = ray.data.from_arrow([table.slice(start, 50) for start in range(0, 300, 50)])
    cut = shuffle.Shuffle(300, ShardLimits(40, 4), at_once, {"num_cpus": 0.25})(routed).materialize()
    assert {block.num_rows for block in map(ray.get, cut.to_arrow_refs())} == {1}, "each shard is a block of its own"
    shards = [shuffle.unpack(row["records"]) for row in cut.take_all()]
    assert sorted(row for shard in shards for row in shard["row"].to_pylist()) == list(range(300))
    assert max(shard.num_rows for shard in shards) == 40
    pure = [shard for shard in shards if set(shard["mixture"].to_pylist()) == {"hot:1.0"}]
    assert [shard.num_rows for shard in pure].count(40) == 3
    for shard in shards:
        keys = shard["mixture"].to_pylist()
        assert keys == sorted(keys)
        assert len({part.split(":")[0] for key in keys for part in key.split("+")}) <= 4
