"""Columns that folders give, in each format; pyarrow's own reader of such data sets says what their types are."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest

from pipeline.storage.input.columns import Columns
from pipeline.storage.input.files import list_input
from pipeline.storage.input.partitions import partitions
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split, staged_table
from tests.storage import SUFFIXES, encoded, memory_url, user_error, write_file

NULL = "__HIVE_DEFAULT_PARTITION__"


def read(url: str, columns: Columns | None = None) -> pa.Table:
    """The rows of an input as its stages exchange them."""
    columns = columns or Columns()
    plan = plan_input(url, 1000, columns)
    splits = [split for window in range(plan.windows) for split in plan.splits(window)]
    records = [record for split in splits for record in read_split(url, split, columns, {})]
    return staged_table(records, plan.passed)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_format_gets_the_columns_of_its_folders(suffix: str) -> None:
    url = memory_url()
    for folder in ("dt=2026-11-01/n=1", "dt=2026-11-02/n=-2", f"dt={NULL}/n=3", "plain"):
        write_file(f"{url}/{folder}/a{suffix}", encoded([{"id": folder, "prompt": "p"}], suffix))
    table = read(url)
    assert table.select(["id", "in.dt", "in.n"]).to_pylist() == [
        {"id": "dt=2026-11-01/n=1", "in.dt": "2026-11-01", "in.n": 1},
        {"id": "dt=2026-11-02/n=-2", "in.dt": "2026-11-02", "in.n": -2},
        {"id": f"dt={NULL}/n=3", "in.dt": None, "in.n": 3},
        {"id": "plain", "in.dt": None, "in.n": None},
    ]
    assert (table.schema.field("in.dt").type, table.schema.field("in.n").type) == (pa.string(), pa.int32())


def test_requests_of_the_openai_batch_api_get_them_too() -> None:
    url = memory_url()
    body = {"messages": [{"role": "user", "content": "hi"}]}
    request = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    write_file(f"{url}/dt=x/a.jsonl", json.dumps(request).encode())
    columns = Columns(id="custom_id", sampling="sampling", layout="openai_batch")
    assert read(url, columns).select(["id", "in.dt"]).to_pylist() == [{"id": "a", "in.dt": "x"}]


@pytest.mark.parametrize("end", ["", "/k=1", "/k=1/", "/k=1/a.jsonl", "/k=*", "/k=*/", "/*/*.jsonl", "/**"])
def test_a_file_has_the_same_columns_however_it_is_named(end: str) -> None:
    url = memory_url()
    write_file(f"{url}/k=1/a.jsonl", b'{"id": "a", "prompt": "p"}')
    assert read(url + end)["in.k"].to_pylist() == [1]


VALUES = [
    ["1", "2"],
    ["01", "12"],
    ["-1", NULL],
    ["1", "x"],
    ["1", "99999999999"],
    ["0x10", "1"],
    ["+1", "2"],
    ["1.5", "2"],
    ["true", "false"],
    ["a%20b%2Fc", "d"],
    ["a=b", "c"],
]


@pytest.mark.parametrize("values", VALUES, ids="-".join)
def test_values_and_types_are_those_of_pyarrow(values: list[str], tmp_path: Path) -> None:
    for value in values:
        write_file(f"{tmp_path}/k={value}/a.parquet", encoded([{"id": value, "prompt": "p"}], ".parquet"))
    expected = pyarrow.dataset.dataset(str(tmp_path), partitioning="hive").to_table().sort_by("id")
    found = read(str(tmp_path)).sort_by("id")
    assert found["in.k"].to_pylist() == expected["k"].to_pylist()
    assert found["in.k"].type == expected["k"].type


def test_a_query_of_a_web_address_is_no_folder() -> None:
    path = "https://host/dt=1/a.jsonl?sig=x/y=2/z"
    assert partitions([path])[0] == {path: {"dt": 1}}


@pytest.mark.parametrize(
    ("row", "expected"),
    [({"dt": "2026-11-01"}, "2026-11-01"), ({}, "2026-11-01"), ({"dt": "2026-11-02"}, None), ({"dt": None}, None)],
)
def test_a_column_of_the_file_must_say_the_same(row: dict[str, Any], expected: str | None) -> None:
    url = memory_url()
    write_file(f"{url}/dt=2026-11-01/a.jsonl", json.dumps({"id": "a", "prompt": "p"} | row).encode())
    if expected is not None:
        assert read(url)["in.dt"].to_pylist() == [expected]
    else:
        with user_error("dt=2026-11-01/a.jsonl", repr(row["dt"]), "column 'dt'", "says '2026-11-01'"):
            plan_input(url, 10, Columns())


@pytest.mark.parametrize(
    ("column", "folder"),
    [
        (pa.array([20758], pa.date32()), "2026-11-01"),
        (pa.array([7], pa.int64()), "7"),
        (pa.array(["a"]).dictionary_encode(), "a"),
    ],
    ids=str,
)
def test_a_column_of_the_file_keeps_its_type(column: pa.Array, folder: str) -> None:
    with pa.ipc.new_file(buffer := io.BytesIO(), pa.schema([("prompt", pa.string()), ("k", column.type)])) as writer:
        writer.write_table(pa.table({"prompt": ["p"], "k": column}))
    url = memory_url()
    write_file(f"{url}/k={folder}/a.arrow", buffer.getvalue())
    found = read(url)["in.k"].combine_chunks()
    assert found.equals(column.dictionary_decode() if pa.types.is_dictionary(column.type) else column)


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        ("k=%ff", "the folder 'k=%ff'"),
        ("%fe=1", "the folder '%fe=1'"),
        ("k=1/k=2", "two folders with the key 'k'"),
        (f"k=1/x/k={NULL}", "two folders with the key 'k'"),
    ],
)
def test_folders_that_give_no_value_are_refused(folders: str, problem: str) -> None:
    url = memory_url()
    write_file(f"{url}/{folders}/a.jsonl", b'{"prompt": "p"}')
    with user_error(problem, "/a.jsonl"):
        plan_input(url, 10, Columns())


def test_a_key_may_be_given_twice_alike() -> None:
    assert partitions(["/k=1/x/k=1/a.jsonl"])[0] == {"/k=1/x/k=1/a.jsonl": {"k": 1}}


def test_equal_rows_of_two_partitions_are_two_records() -> None:
    url = memory_url()
    for day in (1, 2):
        write_file(f"{url}/dt={day}/a.jsonl", b'{"prompt": "p"}')
    assert plan_input(url, 10, Columns()).duplicates.num_rows == 0
    assert len(list_input(url).files) == 2
