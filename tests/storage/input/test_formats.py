import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.input import formats
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.formats import Format, InputRow, SeekPoint, format_of, jsonl
from pipeline.storage.input.formats.base import FILE_START
from pipeline.storage.input.formats.jsonl import parse_line
from pipeline.storage.input.plan import plan_input
from tests.storage import MEMORY, SUFFIXES, compressed, encoded, memory_url, user_error, write_file


def scanned(content: bytes, suffix: str) -> list[tuple[int, InputRow]]:
    path = write_file(f"{memory_url()}/file{suffix}", content)
    return list(format_of(path).read(MEMORY, path))


def rows_of(content: bytes, suffix: str) -> list[InputRow]:
    return [row for _, row in scanned(content, suffix)]


def values_of(content: bytes, suffix: str) -> list[Any]:
    """Values of good rows, error types of bad ones."""
    return [row.values if row.dead is None else row.dead.error_type for row in rows_of(content, suffix)]


@contextmanager
def longest_line(size: int) -> Iterator[None]:
    with mock.patch.object(jsonl, "MAX_LINE", size):
        yield


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_its_rows_in_order(suffix: str) -> None:
    rows = [{"id": f"r{n}", "prompt": f"text {n}, \u00e9\u4e2d"} for n in range(10)]
    assert values_of(encoded(rows, suffix), suffix) == rows


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_suffixes_are_known_in_any_case(suffix: str) -> None:
    assert format_of(f"/x/DATA{suffix.upper()}") is format_of(f"/x/data{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reading_from_any_seek_point_gives_the_rest_of_the_file(suffix: str) -> None:
    path = write_file(f"{memory_url()}/f{suffix}", encoded([{"n": str(n)} for n in range(10)], suffix))
    kind = format_of(path)
    found = list(kind.read(MEMORY, path))
    starts = {offset: at for at, (offset, _) in reversed(list(enumerate(found)))}
    for offset, at in starts.items():
        assert list(kind.read(MEMORY, path, SeekPoint(at, offset))) == found[at:]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_large_files_can_be_entered_in_the_middle(suffix: str) -> None:
    offsets = [offset for offset, _ in scanned(encoded([{"n": n} for n in range(10)], suffix), suffix)]
    assert len(set(offsets)) > 1


def test_a_file_of_an_unknown_kind_is_named() -> None:
    formats, compressions = ".parquet, .arrow, .feather, .jsonl, .ndjson, .json, .csv", ".gz, .bz2, .xz, .zst, .lz4"
    with user_error("/x/notes.txt", formats, compressions):
        format_of("/x/notes.txt")
    with user_error("a.parquet.gz"):
        format_of("a.parquet.gz")


def test_a_new_format_is_one_class_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    class Text(Format):
        suffixes = (".txt",)

        def read(self, fs: Any, path: str, start: SeekPoint = FILE_START) -> Iterator[tuple[int, InputRow]]:
            return ((0, InputRow({"prompt": line.decode()})) for line in fs.cat_file(path).splitlines())

    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, Text()))
    url = memory_url()
    write_file(f"{url}/a.txt", b"one\ntwo\n")
    assert plan_input(url, 10, Columns()).rows == 2
    with user_error(".parquet, .arrow, .feather, .txt, .jsonl"):
        format_of("/x/a.pdf")


BAD_LINES = {
    b'{"prompt": "\xff"}': "InvalidUtf8",
    b'{"prompt": ': "InvalidJson",
    b'{"prompt": "\\ud800"}': "InvalidJson",
    b'{"prompt": NaN}': "InvalidJson",
    b"[1, 2]": "NotAnObject",
    b"null": "NotAnObject",
    b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}": "TooDeep",
    b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}": "InvalidJson",
}


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson.gz", ".json.zst"])
@pytest.mark.parametrize(("line", "error"), BAD_LINES.items(), ids=lambda v: str(v)[:30])
def test_a_bad_line_spoils_no_other(line: bytes, error: str, suffix: str) -> None:
    content = b'{"a": 1}\n' + line + b'\n{"a": 2}\n'
    content = compressed(content, suffix)
    assert values_of(content, suffix) == [{"a": 1}, error, {"a": 2}]


def test_deep_but_sane_nesting_is_accepted_however_many_brackets_there_are() -> None:
    line = b'{"a": ' + b"[" * 20 + b"1" + b"]" * 20 + b', "b": "' + b"[" * 500 + b'"}'
    assert parse_line(line).dead is None


def test_a_bad_line_keeps_its_text_and_says_where_it_is_wrong() -> None:
    row = parse_line(b'{"prompt": "\xff"}')
    assert row.raw == '{"prompt": "\\xff"}'
    assert row.dead is not None
    assert (row.dead.stage, row.dead.message) == ("read", "byte 12 of the line is not UTF-8")


def test_at_most_2000_characters_of_a_bad_line_are_kept() -> None:
    assert len(parse_line(b"x" * 5000).raw or "") == 2000


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_that_is_too_long_is_skipped_whole(suffix: str, end: bytes) -> None:
    long = b'{"a": "' + b"x" * 3_000_000 + b'"}'
    content = b'{"a": 1}\n' + long + end + (b'{"a": 2}\n' if end else b"")
    content = gzip.compress(content, 1) if suffix.endswith(".gz") else content
    with longest_line(100):
        assert values_of(content, suffix) == [{"a": 1}, "RecordTooLong", *([{"a": 2}] if end else [])]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
@pytest.mark.parametrize(("size", "expected"), [(16, {"a": 1}), (17, "RecordTooLong")])
def test_the_longest_line_is_counted_without_its_end(end: bytes, size: int, expected: object) -> None:
    line = b'{"a": 1}'.ljust(size)
    with longest_line(16):
        assert values_of(line + end, ".jsonl") == [expected]


def test_a_long_line_is_not_taken_for_its_beginning() -> None:
    with longest_line(16):
        assert values_of(b'{"a": 1}'.ljust(16) + b"\r garbage\n", ".jsonl") == ["RecordTooLong"]


@given(st.lists(st.sampled_from([b'{"a": 1}', b"\n", b"\r", b"\r\n", b"x" * 12, b" " * 9, b"{}"])).map(b"".join))
def test_long_lines_in_any_place_keep_the_lines_apart(content: bytes) -> None:
    # What a full parse of each line says, were there no limit on what is read at a time.
    lines = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    with longest_line(16):
        expected = [parse_line(line) for line in lines if line.strip() or len(line) > 16]
        found = rows_of(content, ".jsonl")
    kinds = [[row.values or (row.dead and row.dead.error_type) for row in rows] for rows in (found, expected)]
    assert kinds[0] == kinds[1]


json_lines = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from([b"{}", b'{"id": 1}', b"\n", b"\r\n", b"\r", b"\n\n", b"\xef\xbb\xbf", b"[", b"{"]),
    )
).map(b"".join)


@given(json_lines, st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst"]))
def test_random_bytes_give_one_row_a_line_that_is_not_blank(content: bytes, suffix: str) -> None:
    rows = rows_of(compressed(content, suffix), suffix)
    assert len(rows) == sum(bool(line.removeprefix(b"\xef\xbb\xbf").strip()) for line in content.split(b"\n"))
    assert all((row.values is None) == (row.dead is not None) for row in rows)


@given(json_lines, st.integers(3, 40))
def test_random_lines_are_read_alike_from_every_seek_point(content: bytes, longest: int) -> None:
    path = write_file(f"{memory_url()}/f.jsonl", content)
    kind = format_of(path)
    with longest_line(longest):
        found = list(kind.read(MEMORY, path))
        for at, (offset, _) in enumerate(found):
            assert list(kind.read(MEMORY, path, SeekPoint(at, offset))) == found[at:]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_bom_line_ends_and_a_missing_last_one_change_nothing(
    suffix: str, bom: bytes, newline: bytes, last: bool
) -> None:
    lines = [b'{"a": "1"}', b'{"a": "2"}'] if suffix == ".jsonl" else [b"a", b"1", b"2"]
    content = bom + newline.join(lines) + (newline if last else b"")
    assert values_of(content, suffix) == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n\n", b"\r\n \t\r\n", b"\n  "])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".csv", ".csv.xz"])
def test_blank_lines_are_no_records(suffix: str, end: bytes) -> None:
    lines = [b'{"a": "1"}', b'{"a": "2"}'] if "json" in suffix else [b"a", b"1", b"2"]
    end = end if "json" in suffix else end.replace(b" ", b"").replace(b"\t", b"")  # a blank may be a value
    assert values_of(compressed(b"\n\n".join(lines) + end, suffix), suffix) == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf", b'\xef\xbb\xbf\r\n{"a": "1"}\n'])
def test_a_mark_before_nothing_is_no_record(content: bytes) -> None:
    assert values_of(content, ".jsonl") == [{"a": "1"}] * content.count(b"{")


KEYS: list[tuple[str, str | None]] = [
    ('{"a": 1, "a": 2}', "a"),
    ('{"a" :1,"b":2,"a" :1}', "a"),
    ('{"a":1,"a" :2}', "a"),
    ('{"b\\u0022:":0,"a":1,"a":2}', "a"),
    ('\ufeff{"a":{"b":[{"c":1,"c":1}]}}', "c"),
    ('{"a":1,"\\u0061":2}', "a"),
    ('{"a":[{"b":1},{"b":2}],"b":{"a":1}}', None),
    ('{"a":"{\\"b\\":1,\\"b\\":2}"}', None),
    ('{"a\\u0022:":1,"a":18446744073709551616}', None),
]


@pytest.mark.parametrize(("line", "key"), KEYS)
def test_a_key_that_an_object_has_twice_is_named(line: str, key: str | None) -> None:
    row = parse_line(line.encode())
    assert (row.dead and row.dead.message) == (key and f"an object has the key {key!r} twice")
    assert (row.values is None) == (key is not None)


@pytest.mark.parametrize(("value", "name"), [("NaN", "NaN"), ("[-Infinity]", "Infinity"), ('"NaN", "b": x', None)])
def test_numbers_that_json_does_not_have_are_named(value: str, name: str | None) -> None:
    dead = parse_line(f'{{"a": {value}}}'.encode()).dead
    assert dead is not None
    assert dead.message.endswith(f"; {name} is no JSON, write null or the text {name!r}") == (name is not None)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_csv_fields_may_hold_newlines_commas_and_quotes(suffix: str) -> None:
    rows = [{"id": "007", "prompt": 'two\nlines, a "quote"\r\nand more'}, {"id": "8", "prompt": "plain"}]
    assert values_of(encoded(rows, suffix), suffix) == rows


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"1", "WrongFieldCount"),
        (b"1,2,3", "WrongFieldCount"),
        (b"1,\xff", "InvalidUtf8"),
        (b"1," + b"x" * (17 * 2**20), "RecordTooLong"),
    ],
    ids=["too few", "too many", "not utf-8", "huge field"],
)
def test_a_bad_csv_line_spoils_no_other(line: bytes, error: str) -> None:
    good = {"a": "1", "b": "2"}
    assert values_of(b"a,b\n1,2\n" + line + b"\n1,2\n", ".csv") == [good, error, good]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"1,\xff,3", "1,\\xff,3"),
        (b'1,"say \\"hi\\"\xff, ok"', '1,"say \\"hi\\"\\xff, ok"'),
        (b'1,"cut off', '1,"cut off'),
        (b"1," + b"x" * (17 * 2**20), "1," + "x" * 1998),
    ],
    ids=["fields", "quotes", "cut", "huge"],
)
def test_a_bad_csv_line_keeps_its_text(line: bytes, text: str) -> None:
    (row,) = rows_of(b"a,b\n" + line + b"\n", ".csv")
    assert (row.values, row.raw) == (None, text)


@pytest.mark.parametrize(
    "content",
    [b'a,b\n1,2\n3,"4\n5,6\n7,8\n', b'a,b\n1,2\n3,"4\n5,6', b'a,b\n1,2\n3,"4\n' + b"5,6\n" * (5 * 2**20)],
    ids=["closed nowhere", "cut", "longer than a record may be"],
)
def test_an_open_quote_takes_no_records_with_it(content: bytes) -> None:
    with user_error("/file.csv has an open quote", "in the record of lines 3 to "):
        rows_of(content, ".csv")


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"\xef\xbb\xbf"])
def test_a_csv_without_lines_has_no_rows(content: bytes) -> None:
    assert rows_of(content, ".csv") == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a,b,a\n1,2,3\n", "two columns of the name 'a'"),
        (b"id,prompt,,\n1,a,,\n", "two columns of the name ''"),
        (b"\n1\n", "an empty first line"),
        (b'id,"prompt\n1,2\n3,4\n', "in the record of lines 1 to 3"),
        (b"id,prompt,cat\xe9gorie\n1,2,3\n", "UTF-8"),
        (b"x" * (17 * 2**20) + b"\n1\n", "header"),
    ],
    ids=["twice", "two without a name", "empty", "open quote", "latin-1", "huge"],
)
def test_a_csv_header_that_cannot_be_used_is_refused(content: bytes, problem: str) -> None:
    with user_error("bad.csv", problem):
        path = write_file(f"{memory_url()}/bad.csv", content)
        list(format_of(path).read(MEMORY, path))


def test_a_file_that_is_not_parquet_is_refused() -> None:
    path = write_file(f"{memory_url()}/bad.parquet", b"hello, this is no parquet file")
    with user_error("bad.parquet"):
        list(format_of(path).read(MEMORY, path))
    with user_error("bad.parquet"):
        format_of(path).schema(MEMORY, path)


BAD_VALUES = {
    "text": pa.array([b"a", b"\xff", b"c"]).cast(pa.string(), safe=False),
    "nested text": pa.array([[b"a"], [b"\xff"], [b"c"]]).cast(pa.list_(pa.string()), safe=False),
}


@pytest.mark.parametrize("column", BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_parquet_value_that_cannot_be_read_spoils_no_other_row(column: pa.Array) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": ["1", "2", "3"], "x": column}), buffer)
    found = values_of(buffer.getvalue(), ".parquet")
    assert [row if isinstance(row, str) else row["id"] for row in found] == ["1", "InvalidValue", "3"]
