"""What a store says in a task reaches Ray, which logs it, without credentials."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.records import Record
from pipeline.stages.commit import CommitShards
from pipeline.stages.output_schema import OutputSchema
from pipeline.stages.read import SplitReader, split_tables
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import staged_table
from pipeline.telemetry.incidents import Incidents
from tests.rows import answered
from tests.storage import memory_url, write_file

SAID = "403, url='https://h/x?sig=SECRET'"


def failing(call: str, error: type[Exception] = PermissionError) -> AbstractContextManager[Any]:
    """The store answers so to a call."""
    return mock.patch.object(MemoryFileSystem, call, side_effect=error(SAID))


def error_of(call: Callable[[], Any]) -> str:
    """What Ray would log of an error; not the one that it was made from."""
    with pytest.raises(RuntimeError) as caught:
        call()
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    return str(caught.value)


def test_errors_of_reading_are_masked() -> None:
    url = memory_url()
    write_file(f"{url}/a.jsonl", b'{"id": 1, "prompt": "a"}\n')
    plan = plan_input(url, 10, Columns())
    reader = SplitReader(url, Columns(), plan, Incidents())
    (table,) = split_tables(plan, {0: None})
    assert sum(part.num_rows for part in reader.read(table)) == 1
    with failing("_open"):
        said = error_of(lambda: list(reader.read(table)))
    assert "https://h/x?***" in said
    assert "SECRET" not in said


def test_errors_of_committing_are_masked() -> None:
    passed = pa.schema([])
    table = answered(staged_table([Record(0, "a", "asked")], passed))
    table = table.append_column("window", pa.array([0], pa.int32()))
    commit = CommitShards(MarkerStore(memory_url()), OutputSchema(passed, False, "r", "b"), 10, "a", Incidents())
    with failing("pipe_file", PermissionError):  # the store refuses for good, which the driver tells
        [refusal] = commit(table)["refusal"].to_pylist()
    with failing("pipe_file", ValueError):
        said = error_of(lambda: commit(table))
    for text in (refusal, said):
        assert "https://h/x?***" in text
        assert "SECRET" not in text
