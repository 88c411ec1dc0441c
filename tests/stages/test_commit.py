"""The commit stage: its row for the driver, names of the output's columns, and what its tasks load."""

import errno
from unittest import mock

import orjson
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.records import DATA, PROVENANCE, DeadLetter, Record
from pipeline.stages.commit import COMMITTED, CommitShards
from pipeline.stages.output_schema import OutputSchema, dead_letters
from pipeline.stages.tables import with_dead_letters
from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.input.read import staged_table
from pipeline.telemetry.incidents import Incidents
from tests.rows import answered
from tests.storage import memory_url
from tests.storage.commit.committing import visible
from tests.telemetry import local_incidents


def names(*passed: str) -> list[str]:
    schema = pa.schema([(name, pa.string()) for name in passed])
    return [n for n in OutputSchema(schema, False, "r", "b").data.names if n not in {*DATA.names, *PROVENANCE.names}]


def test_passed_through_columns_keep_their_names_and_order() -> None:
    assert names("b", "a", "prompt") == ["b", "a", "prompt"]


def test_a_passed_through_prompt_column_is_not_overwritten_by_the_prompt() -> None:
    passed = pa.schema([("prompt", pa.string())])
    table = answered(staged_table([Record(0, "a", "asked", {"prompt": "passed"})], passed))
    assert OutputSchema(passed, False, "r", "b").data_table(table)["prompt"].to_pylist() == ["passed"]
    both = OutputSchema(passed, True, "r", "b").data_table(table)
    assert (both["prompt"].to_pylist(), both["input_prompt"].to_pylist()) == (["asked"], ["passed"])


def test_a_name_that_the_output_uses_gets_another_that_nobody_has() -> None:
    assert names("output", "input_output", "id") == ["input_input_output", "input_output", "input_id"]


def test_a_dead_letter_is_the_same_from_a_record_and_from_its_row_between_the_stages() -> None:
    passed = pa.schema([("number", pa.int64()), ("stage", pa.string())])
    record = Record(3, "a", "asked", {"number": 1}, dead=DeadLetter("route", "PromptTooLong", "300 tokens"))
    table = OutputSchema(passed, False, "r", "b").dead_table(staged_table([record], passed), 100)
    assert table.equals(dead_letters([record], 100))
    [row] = table.to_pylist()
    assert row.pop("record") == '{"id":"a","number":1,"prompt":"asked"}'
    assert row == {"id": "a", "stage": "route", "error_type": "PromptTooLong", "message": "300 tokens", "row": 103}


def test_a_letter_of_a_later_stage_goes_into_its_row_alone() -> None:
    first = DeadLetter("read", "NotAnObject", "the line holds a list")
    table = staged_table([Record(0, "a", dead=first), Record(1, "b", "x"), Record(2, "c", "y")], pa.schema([]))
    later = DeadLetter("generate", "OutOfMemoryError", "CUDA out of memory")
    marked = with_dead_letters(table, {2: later})
    assert marked.schema == table.schema
    assert [row and DeadLetter(**row) for row in marked["dead"].to_pylist()] == [first, None, later]


WINDOW, WINDOW_ROWS = 3, 100


def generated(rows: list[int], dead: tuple[int, ...] = ()) -> pa.Table:
    """What the generate stage makes of rows of a window; some are dead."""
    letter = DeadLetter("route", "PromptTooLong", "300 tokens")
    records = [Record(row, str(row), "asked", dead=letter if row in dead else None) for row in rows]
    table = answered(staged_table(records, pa.schema([])), mixture="a:1.0", completion_tokens=2)
    return table.append_column("window", pa.array([WINDOW] * len(rows), pa.int32()))


def committing(store: MarkerStore, attempt: str = "a", incidents: Incidents | None = None) -> CommitShards:
    schema = OutputSchema(pa.schema([]), False, "r", "b")
    return CommitShards(store, schema, WINDOW_ROWS, attempt, incidents or Incidents())


def told(table: pa.Table) -> tuple[int, Counts, str]:
    """What the driver reads in the one row of a shard."""
    assert table.schema == COMMITTED
    [row] = table.to_pylist()
    return row["window"], Counts(**orjson.loads(row["counts"])), row["refusal"]


def test_the_driver_is_told_of_each_shard_that_is_committed() -> None:
    store = MarkerStore(memory_url(), "today")
    window, counts, refusal = told(committing(store)(generated([4, 7, 9], dead=(7,))))
    assert (window, refusal) == (WINDOW, "")
    assert (counts.data, counts.dead, counts.completion_tokens, counts.mixtures) == (2, 1, 4, {"a:1.0": 2})
    assert counts.errors == {"PromptTooLong": 1}
    [shard] = store.shards(WINDOW)
    assert (shard.data_rows.tolist(), shard.dead_rows.tolist(), shard.counts) == ([4, 9], [7], counts)
    assert (visible(store, "data"), visible(store, "dead", "id")) == (["4", "9"], ["7"])
    assert store.read_table(shard.dead)["row"].to_pylist() == [WINDOW * WINDOW_ROWS + 7]
    assert told(committing(store)(generated([1], dead=(1,))))[1].dead == 1, "a shard of dead letters alone"


def test_the_same_rows_are_committed_once() -> None:
    """A task whose process died behind its marker is tried again."""
    store = MarkerStore(memory_url())
    first = committing(store)(generated([4, 7], dead=(7,)))
    assert committing(store)(generated([4, 7], dead=(7,))) == first
    [shard] = store.shards(WINDOW)
    committing(store)(generated([4, 8]))
    committing(store)(generated([4]))
    committing(store, "b")(generated([4, 7]))
    found = {other.name: sorted(other.rows.tolist()) for other in store.shards(WINDOW)}
    assert sorted(found.values()) == [[4], [4, 7], [4, 7], [4, 8]], "other rows, or another pass, have another name"
    assert found[shard.name] == [4, 7]
    assert all(name.startswith(store.shard_prefix(WINDOW)) for name in found)


def test_what_the_store_refuses_is_told_and_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    store, incidents = MarkerStore(memory_url()), local_incidents(monkeypatch)
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch.object(MemoryFileSystem, "pipe_file", side_effect=full):
        window, counts, refusal = told(committing(store, incidents=incidents)(generated([4, 7])))
    assert (window, counts, refusal) == (WINDOW, Counts(), "OSError: [Errno 28] No space left on device")
    assert [(str(incident), n) for incident, n in incidents.counts()] == [(f"commit: StoreError: {refusal}", 1)]
    assert list(store.shards(WINDOW)) == []


def test_other_errors_fail_the_task_which_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    store, incidents = MarkerStore(memory_url()), local_incidents(monkeypatch)
    lost = mock.patch.object(MemoryFileSystem, "pipe_file", side_effect=ValueError("a mistake"))
    with lost, pytest.raises(ValueError, match="a mistake"):
        committing(store, incidents=incidents)(generated([4]))
    assert [incident.error_type for incident, _ in incidents.counts()] == ["ValueError"]
    assert told(committing(store, incidents=incidents)(generated([4])))[1].data == 1
