"""Lines of JSON hold the values of a run exactly."""

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pytest

from pipeline.evaluation.runs import read_predictions
from pipeline.records import DATA, DEAD, concat_schemas
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard
from pipeline.storage.output.export import export_lines, export_parquet
from pipeline.storage.output.run import RUN, RunFolder, encode_schema
from pipeline.storage.types.values import is_json_text, json_field
from tests.storage import user_error

_JSON: list[Any] = ["text", 2**64, {"b": [1, 0.5], "a": None}, None, ""]


def make_run(url: str, passed: pa.Table) -> None:
    """A run that was not finished, with some passed-through columns."""
    rows = [
        {"id": str(n), "output": "4", "mixture": "base", "finish_reason": "stop", "prompt_tokens": 1}
        | {"completion_tokens": 1, "adapters": [], "weights": [], "fallback": False, "answer_logprob": 0.0}
        | {"last_assistant": False}
        for n in range(passed.num_rows)
    ]
    schema = concat_schemas(DATA, passed.schema)
    made = pa.Table.from_pylist(rows, DATA)
    data, dead = pa.Table.from_arrays(made.columns + passed.columns, schema=schema), DEAD.empty_table()
    nothing = np.array([], np.int64)
    shard = Shard("w000000-a-0", None, None, np.arange(data.num_rows), nothing, count_rows(data, dead))
    commit_shard(MarkerStore(url), shard, data, dead)
    RunFolder(url).write_json(RUN, {"schemas": {"data": encode_schema(schema), "dead": encode_schema(DEAD)}})


def lines_of(passed: pa.Table, folder: Path) -> list[dict[str, Any]]:
    make_run(str(folder / "run"), passed)
    assert export_lines(str(folder / "run"), str(folder / "rows.jsonl"), "jsonl") == passed.num_rows
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


def json_column(name: str, values: list[Any]) -> pa.Table:
    texts = [None if value is None else json.dumps(value) for value in values]
    return pa.table([pa.array(texts)], schema=pa.schema([json_field(name)]))


def test_json_text_is_exported_as_the_values_in_it(tmp_path: Path) -> None:
    assert [line["x"] for line in lines_of(json_column("x", _JSON), tmp_path)] == _JSON


def test_keys_and_columns_keep_their_order(tmp_path: Path) -> None:
    [line] = lines_of(json_column("z", [{"b": 1, "a": 2}]), tmp_path)
    assert list(line["z"]) == ["b", "a"]
    assert list(line) == [*DATA.names, "z"]


def test_values_that_json_does_not_have_are_exact_texts(tmp_path: Path) -> None:
    passed = pa.table(
        {
            "far": pa.array([np.datetime64("12000-01-02T03:04:05.000006")]),
            "ns": pa.array([1], pa.timestamp("ns", "Asia/Tokyo")),
            "decimal": pa.array([Decimal("1.10")]),
            "nan": [float("nan")],
            "bytes": [b"\xff"],
            "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    [line] = lines_of(passed, tmp_path)
    assert {name: line[name] for name in passed.column_names} == {
        "far": "12000-01-02T03:04:05.000006",
        "ns": "1970-01-01T00:00:00.000000001Z",
        "decimal": "1.10",
        "nan": "NaN",
        "bytes": "/w==",
        "map": {"a": 1},
    }


def test_parquet_keeps_the_mark_of_json_text(tmp_path: Path) -> None:
    make_run(str(tmp_path / "run"), json_column("x", _JSON))
    export_parquet(str(tmp_path / "run"), str(tmp_path / "copy"), None)
    assert is_json_text(pa.dataset.dataset(tmp_path / "copy").schema.field("x"))


UNFIT = [
    ("k", pa.array(["__HIVE_DEFAULT_PARTITION__", None]), "holds '__HIVE_DEFAULT_PARTITION__', after which no folder"),
    ("k", pa.array(["é" * 50]), "after which no folder can be named"),
    ("k", pa.array([b"\xff"]), "holds lists, objects or bytes"),
    ("a/b", pa.array(["x"]), "no folder can be named after the column 'a/b'"),
    ("a=b", pa.array(["x"]), "no folder can be named after the column 'a=b'"),
    ("", pa.array(["x"]), "no folder can be named after the column ''"),
]


@pytest.mark.parametrize(("name", "column", "problem"), UNFIT, ids=[problem[-25:] for *_, problem in UNFIT])
def test_what_folders_cannot_say_is_refused_before_it_is_written(
    name: str, column: pa.Array, problem: str, tmp_path: Path
) -> None:
    make_run(str(tmp_path / "run"), pa.table({name: column}))
    with user_error("export: ", problem):
        export_parquet(str(tmp_path / "run"), str(tmp_path / "copy"), name)
    assert not (tmp_path / "copy").exists()


def test_folders_say_each_value(tmp_path: Path) -> None:
    values = ["a/b", "..", "100%", "a=b", " ", "", None, "x" * 200]
    make_run(str(tmp_path / "run"), pa.table({"k": values}))
    export_parquet(str(tmp_path / "run"), str(tmp_path / "copy"), "k")
    assert sorted(p.parent.parent.name for p in tmp_path.glob("copy/*/*")) == ["copy"] * len(values)
    copy = pyarrow.dataset.dataset(tmp_path / "copy", partitioning="hive").to_table().sort_by("id")
    assert copy["k"].to_pylist() == values


def test_a_copy_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    make_run(str(tmp_path / "run"), pa.table({"k": ["x"]}))
    (tmp_path / "file").write_text("x")
    with user_error("export: cannot write to ", "/file/copy"):
        export_parquet(str(tmp_path / "run"), str(tmp_path / "file" / "copy"), None)


def test_answers_in_json_text_are_compared_as_values(tmp_path: Path) -> None:
    make_run(str(tmp_path / "run"), json_column("answer", [4, "4", "four", None]))
    found = read_predictions(str(tmp_path / "run"), "answer", "task", None)
    assert [prediction.question.reference for prediction in found.predictions] == ["4", "4", "four"]
