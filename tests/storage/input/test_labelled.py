import pytest

from pipeline.storage.input.labelled import read_table
from tests.storage import SUFFIXES, encoded, memory_url, user_error, write_file


def table_url(content: bytes, suffix: str) -> str:
    url = f"{memory_url()}/table{suffix}"
    write_file(url, content)
    return url


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_of_each_format_has_the_same_rows(suffix: str) -> None:
    rows = [{"id": "007", "answer": "2026-01-31", "task": None}, {"id": "8", "answer": "1,5", "task": "t"}]
    assert read_table(table_url(encoded(rows, suffix), suffix), ["id", "answer"]) == rows


def test_values_of_json_are_kept_and_absent_ones_are_none() -> None:
    content = b'{"id": 18446744073709551616, "answer": "2026-01-31T12:00:00"}\n{"id": 1, "answer": true, "x": 1}\n'
    assert read_table(table_url(content, ".jsonl"), ["id"]) == [
        {"id": 2**64, "answer": "2026-01-31T12:00:00", "x": None},
        {"id": 1, "answer": True, "x": 1},
    ]


def test_a_missing_column_and_a_bad_row_are_named() -> None:
    with user_error("table.jsonl", "lacks the column(s) answer", "it has id"):
        read_table(table_url(b'{"id": 1}\n', ".jsonl"), ["id", "answer"])
    with user_error("table.jsonl", "row 1"):
        read_table(table_url(b'{"id": 1}\n{"id": \n', ".jsonl"), ["id"])
    url = table_url(b"", ".csv")
    with user_error("data: ", "is a folder; give one of its files"):
        read_table(url.rpartition("/")[0], ["id"])
    with user_error("table.txt", ".jsonl"):
        read_table(table_url(b"", ".txt"), ["id"])
