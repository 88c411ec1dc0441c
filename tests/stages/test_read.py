"""Splits on their way to the read stage: the blocks that they come in, and what each reader is told."""

import json
from functools import cache
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.stages import read as read_module
from pipeline.stages.read import SplitReader, split_tables
from pipeline.storage.input import plan as plan_module
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.plan import InputPlan, plan_input
from pipeline.storage.input.read import staged_schema
from pipeline.telemetry.incidents import Incidents
from tests.storage import memory_url, write_file

ROWS, WINDOW, SPLIT = 40, 15, 4


def planned(ids: list[str], window: int = WINDOW, split: int = SPLIT) -> tuple[str, InputPlan]:
    """An input of one file with a split every few rows, and its plan."""
    url = memory_url()
    lines = [json.dumps({"id": identity, "prompt": f"p{row}"}) + "\n" for row, identity in enumerate(ids)]
    write_file(f"{url}/a.jsonl", "".join(lines).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "SPLIT_ROWS", split)
        return url, plan_input(url, window, Columns())


with_splits_of = cache(lambda split: planned([str(row) for row in range(ROWS)], split=split))


def splits_of(tables: list[pa.Table]) -> list[dict[str, Any]]:
    return [orjson.loads(text) for table in tables for text in table["split"].to_pylist()]


def read(url: str, plan: InputPlan, tables: list[pa.Table], max_rows: int = 512) -> list[dict[str, Any]]:
    """The rows that the readers of all blocks make together."""
    reader = SplitReader(url, Columns(), plan, Incidents(), max_rows)
    parts = [part for table in tables for part in reader.read(table)]
    schema = staged_schema(plan.passed).append(pa.field("window", pa.int32()))
    assert all(part.schema == schema and 0 < part.num_rows <= max_rows for part in parts)
    return [row for part in parts for row in part.to_pylist()]


def test_many_splits_come_in_a_bounded_number_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_module, "_MAX_BLOCKS", 40)
    _, plan = planned([str(row) for row in range(100)], split=1)
    tables = split_tables(plan, dict.fromkeys(range(plan.windows)))
    assert [table.num_rows for table in tables] == [3] * 33 + [1]
    assert [v["window"] * WINDOW + v["split"]["row"] for v in splits_of(tables)] == list(range(100))
    assert [table.num_rows for table in split_tables(plan, dict.fromkeys(range(2)))] == [1] * 30


def test_few_splits_are_a_block_each_and_none_are_no_block() -> None:
    _, plan = planned([str(row) for row in range(ROWS)])
    tables = split_tables(plan, dict.fromkeys(range(plan.windows)))
    assert [table.num_rows for table in tables] == [1] * len(tables)
    assert sum(split["split"]["take"] for split in splits_of(tables)) == ROWS
    assert split_tables(plan, {}) == split_tables(plan, {1: np.empty(0, np.int64)}) == []


MISSING = st.dictionaries(
    st.integers(0, 2), st.none() | st.sets(st.integers(0, 9)).map(lambda rows: np.array(sorted(rows), np.int64))
)


@given(MISSING, st.integers(1, 20), st.integers(1, 9))
def test_missing_rows_are_read_once_and_no_others(
    missing: dict[int, np.ndarray | None], split: int, max_rows: int
) -> None:
    url, plan = with_splits_of(split)
    tables = split_tables(plan, missing)
    found = [(row["window"], row["row"], row["id"]) for row in read(url, plan, tables, max_rows)]
    wanted = [
        (window, row, str(window * WINDOW + row))
        for window, rows in sorted(missing.items())
        for row in (range(plan.window_size(window)) if rows is None else rows.tolist())
    ]
    assert found == wanted
    for values in splits_of(tables):
        own = range(values["split"]["row"], values["split"]["row"] + values["split"]["take"])
        assert values["rows"] is None or set(values["rows"]) <= set(own)
        assert values["rows"] != [], "a split without a missing row is not read"


def test_a_repeated_id_reaches_the_reader_of_its_split_and_no_other() -> None:
    ids = [str(row) for row in range(ROWS)]
    ids[21] = ids[33] = ids[2]
    url, plan = planned(ids)
    tables = split_tables(plan, dict.fromkeys(range(plan.windows)))
    told = {(v["window"], v["split"]["row"]): v["repeated"] for v in splits_of(tables) if v["repeated"]}
    assert list(told.values()) == [[[6, 2, 1]], [[3, 2, 2]]]
    assert [window for window, _ in told] == [1, 2]
    dead = {row["window"] * WINDOW + row["row"] for row in read(url, plan, tables) if row["dead"]}
    assert dead == {21, 33}
    again = split_tables(plan, {1: np.array([6, 9]), 2: np.array([9])})
    rows = read(url, plan, again)
    assert [(row["window"], row["row"], bool(row["dead"])) for row in rows] == [
        (1, 6, True),
        (1, 9, False),
        (2, 9, False),
    ]


def test_a_file_that_changed_since_it_was_planned_gives_no_rows() -> None:
    url, plan = planned([str(row) for row in range(ROWS)])
    tables = split_tables(plan, {0: None})
    write_file(f"{url}/a.jsonl", b'{"id": "x", "prompt": "y"}\n' * ROWS)
    with pytest.raises(RuntimeError, match="was changed or removed while it was read"):
        read(url, plan, tables)
