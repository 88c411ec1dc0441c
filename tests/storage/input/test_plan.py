import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any
from unittest import mock

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.records import Record
from pipeline.storage.input import plan as plan_module
from pipeline.storage.input.columns import Columns, content_hash
from pipeline.storage.input.plan import InputPlan, plan_input
from pipeline.storage.input.read import read_split, staged_schema, staged_table
from tests import examples
from tests.storage import SUFFIXES, encoded, memory_url, user_error, write_file

COLUMNS = Columns()
# Files of some rows each, of any format; a row is its id (None: no id), so that ids repeat often.
files = st.lists(
    st.tuples(st.sampled_from(SUFFIXES), st.lists(st.none() | st.integers(0, 9), min_size=1, max_size=12)),
    min_size=1,
    max_size=4,
)


def parquet_file(**columns: pa.Array) -> bytes:
    pq.write_table(pa.table(columns), buffer := io.BytesIO())
    return buffer.getvalue()


@contextmanager
def split_rows(count: int) -> Iterator[None]:
    """Seek points every ``count`` rows."""
    with mock.patch.object(plan_module, "SPLIT_ROWS", count):
        yield


def row_of(identity: int | None) -> dict[str, str]:
    return {"id": "" if identity is None else f"id{identity}", "prompt": "p"}


def written(inputs: list[tuple[str, list[int | None]]]) -> str:
    url = memory_url()
    for number, (suffix, ids) in enumerate(inputs):
        write_file(f"{url}/{number:03d}{suffix}", encoded([row_of(i) for i in ids], suffix))
    return url


def read_window(plan: InputPlan, url: str, window: int) -> list[Record]:
    repeated = plan.duplicates_of(window)
    return list(chain.from_iterable(read_split(url, split, COLUMNS, repeated) for split in plan.splits(window)))


def read_all(plan: InputPlan, url: str) -> list[list[Record]]:
    return [read_window(plan, url, window) for window in range(plan.windows)]


def expected_outcomes(ids: list[int | None]) -> list[tuple[str, bool]]:
    """Id and whether it is a repeated one, for each row of the input."""
    seen: dict[int | None, int] = {}
    outcomes = []
    for identity in ids:
        times = seen.get(identity, 0)
        seen[identity] = times + 1
        hashed = content_hash(row_of(None)) + (f"-{times + 1}" if times else "")
        outcomes.append((hashed, False) if identity is None else (f"id{identity}", times > 0))
    return outcomes


@pytest.mark.long
@given(files, st.integers(1, 50), st.integers(1, 6))
def test_windows_hold_every_row_once_in_order_whatever_the_splits(
    inputs: list[tuple[str, list[int | None]]], window_rows: int, rows_per_split: int
) -> None:
    url = written(inputs)
    with split_rows(rows_per_split):
        plan = plan_input(url, window_rows, COLUMNS)
        windows = read_all(plan, url)
    ids = [identity for _, identities in inputs for identity in identities]
    assert plan.rows == len(ids) == sum(plan.window_size(w) for w in range(plan.windows))
    for number, window in enumerate(windows):
        assert [r.row for r in window] == list(range(plan.window_size(number)))
    records = [record for window in windows for record in window]
    assert [(r.id, r.dead is not None) for r in records] == expected_outcomes(ids)


@pytest.mark.long
@given(files, st.integers(1, 50), st.integers(1, 10), st.integers(1, 6))
def test_a_limit_gives_the_first_rows_as_they_would_be_without_it(
    inputs: list[tuple[str, list[int | None]]], limit: int, window_rows: int, rows_per_split: int
) -> None:
    url = written(inputs)
    with split_rows(rows_per_split):
        whole = list(chain.from_iterable(read_all(plan_input(url, window_rows, COLUMNS), url)))
        part = list(chain.from_iterable(read_all(plan_input(url, window_rows, COLUMNS, limit=limit), url)))
    assert [(r.id, r.dead) for r in part] == [(r.id, r.dead) for r in whole[:limit]]


@pytest.mark.long
@given(files, st.integers(1, 20), st.integers(1, 6), st.integers(1, 6))
def test_the_place_of_splits_does_not_change_the_records(
    inputs: list[tuple[str, list[int | None]]], window_rows: int, one: int, other: int
) -> None:
    url = written(inputs)
    read = []
    for count in (one, other):
        with split_rows(count):
            read.append(read_all(plan_input(url, window_rows, COLUMNS), url))
    assert read[0] == read[1]


@settings(max_examples=examples(30))
@given(st.integers(0, 2**32), st.integers(1, 9))
def test_a_jsonl_file_of_random_bytes_is_planned_and_read(seed: int, window_rows: int) -> None:
    generator = random.Random(seed)
    lines = [generator.choice([b'{"prompt":"p","x":%d}' % n, generator.randbytes(9), b""]) for n in range(20)]
    url = memory_url()
    write_file(f"{url}/a.jsonl", b"\n".join(lines))
    with split_rows(4):
        plan = plan_input(url, window_rows, COLUMNS)
        records = [record for window in read_all(plan, url) for record in window]
    assert len(records) == plan.rows
    assert staged_table(records, plan.passed).num_rows == plan.rows


def test_a_dead_letter_of_a_repeated_id_names_the_row_that_had_it_first() -> None:
    url = written([(".jsonl", [1, 2, 3]), (".csv", [2])])
    ((*_, last),) = read_all(plan_input(url, 10, COLUMNS), url)
    assert last.dead is not None
    assert (last.dead.error_type, last.id) == ("DuplicateId", "id2")
    assert "'id2'" in last.dead.message
    assert "row 1 of the input, counted from 0" in last.dead.message


def test_a_whole_number_and_the_same_text_are_one_id() -> None:
    url = memory_url()
    write_file(f"{url}/a.jsonl", b'{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n')
    (window,) = read_all(plan_input(url, 10, COLUMNS), url)
    assert [r.dead and r.dead.error_type for r in window] == [None, "DuplicateId"]


def test_a_bad_row_with_a_repeated_id_keeps_its_own_error() -> None:
    url = memory_url()
    write_file(f"{url}/a.jsonl", b'{"id": "a", "prompt": "a"}\n{"id": "a"}\nbad\nbad\n')
    (window,) = read_all(plan_input(url, 10, COLUMNS), url)
    assert [r.dead and r.dead.error_type for r in window] == [None, "MissingPrompt", "InvalidJson", "InvalidJson"]
    assert window[3].id == f"{window[2].id}-2"


def test_a_single_file_a_folder_and_a_glob_are_planned_alike() -> None:
    url = written([(".jsonl", [1, 2, 3])])
    plans = [plan_input(url + end, 2, COLUMNS) for end in ("", "/000.jsonl", "/*.jsonl")]
    assert {(p.rows, p.windows, tuple(p.seek_points)) for p in plans} == {(3, 2, tuple(plans[0].seek_points))}


def test_the_last_window_has_the_rest() -> None:
    plan = plan_input(written([(".jsonl", [1] * 7)]), 3, COLUMNS)
    assert [plan.window_size(w) for w in range(plan.windows)] == [3, 3, 1]


def test_files_without_rows_are_passed_over() -> None:
    url = written([(".jsonl", [1, 2])])
    write_file(f"{url}/000-empty.jsonl", b"")
    write_file(f"{url}/zzz-header.csv", b"id,prompt\n")
    plan = plan_input(url, 10, COLUMNS)
    assert ([r.id for r in read_all(plan, url)[0]], len(plan.files)) == (["id1", "id2"], 3)


EMPTY = {
    "header": (".csv", b"id,prompt,x\n"),
    "types": (".parquet", parquet_file(id=pa.array([], pa.float64()), prompt=pa.nulls(0), x=pa.array([], pa.string()))),
}


@pytest.mark.parametrize(("suffix", "content"), EMPTY.values(), ids=EMPTY)
def test_types_of_files_without_rows_do_not_count(suffix: str, content: bytes) -> None:
    url = memory_url()
    write_file(f"{url}/a.jsonl", b'{"id": "a", "prompt": "p", "y": 1}\n')
    write_file(f"{url}/b{suffix}", content)
    assert plan_input(url, 10, COLUMNS).passed == pa.schema([("y", pa.int64()), ("x", pa.string())])
    write_file(f"{url}/c.jsonl", b'{"id": "c", "prompt": "p", "x": 1}\n')
    assert plan_input(url, 10, COLUMNS).passed == pa.schema([("y", pa.int64()), ("x", pa.int64())])


def test_hidden_files_are_not_read() -> None:
    url = written([(".jsonl", [1])])
    write_file(f"{url}/_temporary/x.jsonl", encoded([row_of(2)], ".jsonl"))
    assert plan_input(url, 10, COLUMNS).rows == 1


@pytest.mark.parametrize("content", [b"", b"id,prompt\n"])
def test_an_input_without_a_row_is_refused(content: bytes) -> None:
    url = memory_url()
    write_file(f"{url}/a.csv", content)
    with user_error(url, "no record"):
        plan_input(url, 10, COLUMNS)


@pytest.mark.parametrize("end", ["", "/none.jsonl", "/*.jsonl"])
def test_a_wrong_url_is_refused(end: str) -> None:
    url = memory_url() + end
    with user_error(url):
        plan_input(url, 10, COLUMNS)


def test_a_file_of_an_unknown_kind_is_refused() -> None:
    url = written([(".jsonl", [1])])
    write_file(f"{url}/notes.txt", b"hi")
    with user_error("notes.txt"):
        plan_input(url, 10, COLUMNS)


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".csv.gz", ".parquet"])
def test_a_damaged_file_is_refused_by_name_in_one_line(suffix: str) -> None:
    content = encoded([row_of(n) for n in range(200)], suffix)
    generator = random.Random(0)
    errors = [error for _ in range(60) if (error := _error_of(_damaged(content, generator), suffix))]
    assert len(errors) > 10
    assert [error for error in errors if "\n" in error or f"/a{suffix}" not in error] == []


def _damaged(content: bytes, generator: random.Random) -> bytes:
    """The content with one bit changed."""
    damaged = bytearray(content)
    damaged[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def _error_of(content: bytes, suffix: str) -> str:
    """What the user is told of a file, nothing where it can be read; any other error fails the test."""
    url = memory_url()
    write_file(f"{url}/a{suffix}", content)
    try:
        plan_input(f"{url}/a{suffix}", 100, COLUMNS)
    except UserError as error:
        return str(error)
    return ""


def test_the_types_of_passed_columns_are_found_over_all_files() -> None:
    url = memory_url()
    rows: list[list[dict[str, Any]]] = [[{"id": 1, "n": 1, "x": "a"}], [{"id": 2, "n": 0.5, "messages": None}]]
    for number, (part, suffix) in enumerate(zip(rows, (".jsonl", ".parquet"), strict=True)):
        write_file(f"{url}/{number}{suffix}", encoded(part, suffix))
    assert plan_input(url, 10, COLUMNS).passed == pa.schema([("n", pa.float64()), ("x", pa.string())])


def test_staged_tables_hold_records_as_they_are() -> None:
    url = memory_url()
    lines = b'{"id":"a","prompt":"p","n":1,"row":"r"}\n{"id":"b","messages":[{"role":"user","content":"hi"}]}\nbad\n'
    write_file(f"{url}/a.jsonl", lines)
    plan = plan_input(url, 10, COLUMNS)
    table = staged_table(read_window(plan, url, 0), plan.passed)
    assert table.schema == staged_schema(plan.passed)
    first, second, third = table.to_pylist()
    assert (first["row"], first["id"], first["prompt"], first["in.n"], first["in.row"]) == (0, "a", "p", 1, "r")
    assert (second["prompt"], second["in.n"]) == (None, None)
    assert orjson.loads(second["messages"]) == [{"role": "user", "content": "hi"}]
    assert (third["raw"], third["dead"]["stage"], third["dead"]["error_type"]) == ("bad", "read", "InvalidJson")
