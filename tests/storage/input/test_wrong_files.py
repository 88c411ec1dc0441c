"""Files that are wrong as a whole get one message with what they seem to be; others keep their dead letters."""

import io
import json
from typing import Any

import pyarrow as pa
import pytest

from pipeline.storage.input.columns import Columns
from pipeline.storage.input.labelled import read_table
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split
from tests.storage import compressed, encoded, memory_url, user_error, write_file

ROWS: list[dict[str, Any]] = [{"id": f"r{n}", "prompt": f"text {n}, more"} for n in range(3)]
LINES = encoded(ROWS, ".jsonl")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def arrow_file() -> bytes:
    table = pa.Table.from_pylist(ROWS)
    with pa.ipc.new_file(buffer := io.BytesIO(), table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


WRONG = {
    "UTF-16 with a mark": (".jsonl", LINES.decode().encode("utf-16"), "is UTF-16"),
    "UTF-16 without": (".jsonl", LINES.decode().encode("utf-16-le"), "is UTF-16LE"),
    "UTF-16, big end first": (".json.gz", LINES.decode().encode("utf-16-be"), "is UTF-16BE"),
    "UTF-16 in CSV": (".csv", encoded(ROWS, ".csv").decode().encode("utf-16"), "is UTF-16"),
    "UTF-32": (".jsonl", LINES.decode().encode("utf-32"), "is UTF-32"),
    "semicolons": (".csv", b"id;prompt\n1;a, b and c\n2;d\n", "separated by semicolons"),
    "semicolons, packed": (".csv.zst", b"id;prompt\n1;a\n", "separated by semicolons"),
    "tabs": (".csv", b"id\tprompt\n1\ta\n", "separated by tabs"),
    "blanks in the header": (".csv", b"id, prompt\n1,a\n", "a blank around the name ' prompt'"),
    "JSON in CSV": (".csv", LINES, "holds JSON"),
    "an array on a line": (".jsonl", json.dumps(ROWS).encode(), "is one JSON array"),
    "an array, packed": (".json.gz", json.dumps(ROWS).encode(), "is one JSON array"),
    "an array, a row a line": (".json", b"[\n" + LINES.strip().replace(b"\n", b",\n") + b"\n]", "is one JSON array"),
    "an array over lines": (".json", json.dumps(ROWS, indent=2).encode(), "is one JSON array"),
    "objects over lines": (".json", b"\n".join(json.dumps(r, indent=2).encode() for r in ROWS), "are not one a line"),
    "objects on a line": (".jsonl", LINES.replace(b"\n", b""), "are not one a line"),
    "commas behind objects": (".jsonl", LINES.replace(b"\n", b",\n"), "has a comma behind each object"),
    "Mac's line ends": (".jsonl", LINES.replace(b"\n", b"\r"), "are not one a line"),
    "Python's dicts": (".jsonl", repr(ROWS[0]).encode() + b"\n", "holds Python's dicts"),
    "LFS, lines": (".jsonl", LFS, "git lfs pull"),
    "LFS, CSV": (".csv", LFS, "git lfs pull"),
    "LFS, Parquet": (".parquet", LFS, "git lfs pull"),
    "LFS, Arrow": (".arrow", LFS, "git lfs pull"),
    "semicolons, a comma in a name": (".csv", b'id;"prompt, long";x\n1;a;b\n', "separated by semicolons"),
    "no line but a header": (".csv", b"id;prompt\n", "separated by semicolons"),
    "packed twice": (".jsonl.gz", compressed(LINES, ".zst"), "is packed itself"),
    "Parquet by another name": (".arrow", encoded(ROWS, ".parquet"), "holds Parquet; its name must end with .parquet"),
    "Arrow by another name": (".parquet", arrow_file(), "holds Arrow; its name must end with .arrow"),
    "Arrow, cut": (".feather", arrow_file()[:-4], "its end is missing"),
    "LFS, packed by name": (".jsonl.gz", LFS, "git lfs pull"),
    "gzip": (".jsonl", compressed(LINES, ".gz"), "holds gzip; its name must end with .gz"),
    "zstd in CSV": (".csv", compressed(LINES, ".zst"), "holds zstd"),
    "Parquet": (".jsonl", encoded(ROWS, ".parquet"), "holds Parquet"),
    "Arrow": (".jsonl", arrow_file(), "holds Arrow; its name must end with .arrow"),
    "spreadsheet": (".csv", b"PK\x03\x04" + bytes(range(200)), "a spreadsheet"),
    "web page": (".jsonl", b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", "is a web page"),
    "error of a store": (".parquet", b"<Error><Code>AccessDenied</Code></Error>" * 9, "or the error of a store"),
}


@pytest.mark.parametrize(("suffix", "content", "problem"), WRONG.values(), ids=WRONG)
def test_a_file_that_is_something_else_is_one_error(suffix: str, content: bytes, problem: str) -> None:
    url = memory_url()
    write_file(f"{url}/a.jsonl", LINES)
    write_file(f"{url}/b{suffix}", compressed(content, suffix) if content != LFS else content)
    with user_error(f"input: {url.removeprefix('memory:/')}/b{suffix} ", problem):
        plan_input(url, 10, Columns())
    with user_error(f"data: {url.removeprefix('memory:/')}/b{suffix} ", problem):
        read_table(f"{url}/b{suffix}", ["task"])


BAD_LINES = {
    "cut line": b'{"id": "x", "pro\n' + LINES,
    "list": b'["a"]\n' + LINES,
    "empty list": b"[]\n" + LINES,
    "not UTF-8": b'{"a": "\xff"}\n' + LINES,
    "text": b"hello\n" + LINES,
    "only text": b"hello\nworld\n",
}


@pytest.mark.parametrize("content", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_first_line_spoils_no_other(content: bytes) -> None:
    url = memory_url()
    write_file(f"{url}/a.jsonl", content)
    plan = plan_input(url, 100, Columns())
    records = [record for split in plan.splits(0) for record in read_split(url, split, Columns(), {})]
    assert [r.id for r in records if not r.dead] == ([r["id"] for r in ROWS] if LINES in content else [])
    assert records[0].dead is not None


@pytest.mark.parametrize(
    ("columns", "key"),
    [
        (Columns(id="nope"), "input.id_column"),
        (Columns(sampling="nope"), "input.sampling_column"),
        (Columns(choices="nope"), "input.choices_column"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".arrow"])
def test_a_column_that_no_record_has_is_named_with_those_there_are(suffix: str, columns: Columns, key: str) -> None:
    url = memory_url()
    write_file(f"{url}/k=1/a{suffix}", encoded(ROWS, suffix))
    with user_error("'nope'", key, "has 'id', 'prompt', 'k'"):
        plan_input(url, 10, columns)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".arrow"])
def test_a_file_without_a_prompt_among_others_is_named(suffix: str) -> None:
    url = memory_url()
    write_file(f"{url}/a.jsonl", LINES)
    write_file(f"{url}/b{suffix}", encoded([{"id": "x", "question": "q"}], suffix))
    with user_error(f"/b{suffix} has a prompt; it has question: set input.prompt_column"):
        plan_input(url, 10, Columns())


@pytest.mark.parametrize("name", [" id", "id ", "\ufeffid", "\u200bid", "id\xa0"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".arrow"])
def test_what_is_around_the_name_of_the_ids_is_not_meant(suffix: str, name: str) -> None:
    url = memory_url()
    write_file(f"{url}/a{suffix}", encoded([{"prompt": "p", name: "x"}], suffix))
    with user_error("no record has the column 'id'", repr(name)):
        plan_input(url, 10, Columns())


NO_RECORDS = {
    "text": (b"hello\nworld\n", "InvalidJson: unexpected character"),
    "JSON in JSON": (json.dumps(json.dumps(ROWS[0])).encode(), "NotAnObject: the line holds a JSON str"),
    "lists": (b'{"id": ["a", "b"], "prompt": ["p", "q"]}\n', "BadId: column 'id' holds a list"),
    "float ids": (
        b'{"id": 1.0, "prompt": "p"}\n\xff\n{"id": 2.0, "prompt": "q"}\n',
        "BadId: column 'id' holds a float",
    ),
    "other names": (b'{"id": 1.0, "question": "p"}\nbad\n', "has a prompt; it has question: set input.prompt_column"),
}


@pytest.mark.parametrize(("content", "problem"), NO_RECORDS.values(), ids=NO_RECORDS)
def test_an_input_without_a_record_that_can_be_used_is_one_error(content: bytes, problem: str) -> None:
    url = memory_url()
    write_file(f"{url}/a.jsonl", content)
    with user_error(f"no record of {url} ", problem):
        plan_input(url, 10, Columns()).check_records()
    write_file(f"{url}/b.jsonl", LINES)
    plan_input(url, 10, Columns()).check_records()


HEADERS = {b"# a note\n": "# a note", b"question\n": "question", b'"two\r\nlines",y\n': "'two\\r\\nlines', y"}


@pytest.mark.parametrize(("first", "named"), HEADERS.items())
def test_a_header_without_a_prompt_is_named_whatever_its_first_row(first: bytes, named: str) -> None:
    url = memory_url()
    write_file(f"{url}/a.csv", first + b"a,b\n" * 3)
    with user_error("/a.csv has a prompt", f"it has {named}"):
        plan_input(url, 10, Columns())
    write_file(f"{url}/b.csv", first + b"a,b\n" if b"," in first else first + b"a\n")
    with user_error("/b.csv lacks the column(s) prompt", f"it has {named}"):
        read_table(f"{url}/b.csv", ["prompt"])


def test_a_column_of_some_records_is_enough() -> None:
    url = memory_url()
    write_file(f"{url}/a.jsonl", LINES + b'{"prompt": "p", "key": "k"}\nbad\n{"id": 1}\n')
    assert plan_input(url, 10, Columns(id="key")).rows == 6
