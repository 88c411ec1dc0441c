import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.markers import Shard, without_overlap

_ROWS = st.lists(st.integers(0, 3000), unique=True, max_size=12)


def shard_of(name: str, rows: list[int]) -> Shard:
    middle = len(rows) // 2
    return Shard(name, None, None, np.array(rows[:middle], np.int64), np.array(rows[middle:], np.int64), Counts())


@given(st.lists(_ROWS, max_size=8))
def test_each_row_stays_with_the_first_shard_that_answers_it(answered: list[list[int]]) -> None:
    shards = [shard_of(f"shard {i}", rows) for i, rows in enumerate(answered)]
    first: dict[int, str] = {}
    for shard in shards:
        for row in shard.rows.tolist():
            first.setdefault(row, shard.name)
    kept = {shard.name: rows.tolist() for shard, rows in without_overlap(shards)}
    wanted = {shard.name: sorted(row for row, name in first.items() if name == shard.name) for shard in shards}
    assert kept == {name: rows for name, rows in wanted.items() if rows}
