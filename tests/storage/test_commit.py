import io
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipeline.records import DATA, DEAD
from pipeline.storage import commit as commit_module
from pipeline.storage import many as many_module
from pipeline.storage import outputs as outputs_module
from pipeline.storage.commit import CommitLog
from pipeline.storage.merge import merge_files
from pipeline.storage.objects import create, names, put, remove
from pipeline.storage.shards import Shard, Tally, WindowFiles, shard_prefix, tally, window_of

from . import memory_url

WINDOW = 3


class KilledError(Exception):
    """The process is killed here."""


@contextmanager
def crash_at(write: int | None) -> Iterator[None]:
    """Kill the writer at the ``write``-th object (from 0) that it writes or removes; None: it lives."""
    written = 0

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def write_or_die(fs: fsspec.AbstractFileSystem, path: str, *content: bytes) -> Any:
            nonlocal written
            if written == write:
                raise KilledError
            written += 1
            return call(fs, path, *content)

        return write_or_die

    with (
        mock.patch.object(outputs_module, "put", dying(put)),
        mock.patch.object(commit_module, "create", dying(create)),
        mock.patch.object(many_module, "remove", dying(remove)),
    ):
        yield


def is_dead(row: int) -> bool:
    return row % 4 == 3


def data_table(rows: list[int], by: str = "") -> pa.Table:
    values = {
        "id": [str(r) for r in rows],
        "output": [f"{by}:{r}" for r in rows],
        "finish_reason": ["stop" if r % 2 else "length" for r in rows],
        "prompt_tokens": rows,
        "completion_tokens": [2 * r for r in rows],
        "mixture": [f"m{r % 3}:1.0" for r in rows],
        "fallback": [r % 5 == 0 for r in rows],
    }
    return pa.table([pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in DATA], schema=DATA)


def dead_table(rows: list[int]) -> pa.Table:
    values = {"id": [str(r) for r in rows], "error_type": [f"Error{r % 2}" for r in rows]}
    return pa.table([pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in DEAD], schema=DEAD)


def write_shard(log: CommitLog, name: str, rows: list[int], window: int = WINDOW) -> Shard:
    """What a write task does with the rows it got."""
    answered, dead = [r for r in rows if not is_dead(r)], [r for r in rows if is_dead(r)]
    tables = data_table(answered, name), dead_table(dead)
    places = np.array(answered, np.int64), np.array(dead, np.int64)
    shard = Shard(f"{shard_prefix(window)}{name}", None, None, *places, tally(*tables))
    return log.commit(shard, *tables)


def visible(log: CommitLog, kind: str, column: str = "id") -> list[str]:
    """Values of a column over all files that a reader takes."""
    files = [io.BytesIO(log.fs.cat_file(path)) for path in log.committed_files(kind)]
    return [value for file in files for value in pq.read_table(file)[column].to_pylist()]


def visible_rows(log: CommitLog) -> list[int]:
    rows = {kind: [int(identity) for identity in visible(log, kind)] for kind in ("data", "dead")}
    assert [r for r in rows["data"] if is_dead(r)] + [r for r in rows["dead"] if not is_dead(r)] == []
    return sorted(rows["data"] + rows["dead"])


def tally_of(rows: list[int]) -> Tally:
    return tally(data_table([r for r in rows if not is_dead(r)]), dead_table([r for r in rows if is_dead(r)]))


@pytest.fixture(params=["local", "memory"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> CommitLog:
    return CommitLog(str(tmp_path / "out") if request.param == "local" else memory_url())


def test_a_new_output_has_no_files(log: CommitLog) -> None:
    assert (log.committed_files("data"), log.committed_files("dead")) == ([], [])
    assert (list(log.shards(WINDOW)), log.finished_windows()) == ([], {})


def test_committed_rows_are_visible_in_file_order(log: CommitLog) -> None:
    write_shard(log, "a-0", [5, 3, 4, 1])
    assert visible(log, "data") == ["5", "4", "1"]
    assert visible(log, "dead") == ["3"]


def test_a_shard_without_rows_of_a_kind_has_no_file_of_it(log: CommitLog) -> None:
    shard = write_shard(log, "a-0", [0, 1])
    assert (shard.dead, log.committed_files("dead")) == (None, [])
    shard = write_shard(log, "a-1", [3])
    assert (shard.data, len(log.committed_files("data"))) == (None, 1)


def test_a_marker_keeps_names_rows_and_counts(log: CommitLog) -> None:
    written = write_shard(log, "a-0", [5, 3, 4, 1, 999_998])
    (read,) = log.shards(WINDOW)
    assert (read.name, read.data, read.dead, read.tally) == (written.name, written.data, written.dead, written.tally)
    assert read.rows.tolist() == [5, 4, 1, 999_998, 3]
    assert window_of(read.name) == WINDOW


@pytest.mark.parametrize("write", [0, 1, 2])
def test_nothing_of_a_shard_is_visible_before_its_marker(log: CommitLog, write: int) -> None:
    with crash_at(write), pytest.raises(KilledError):
        write_shard(log, "a-0", [0, 3])
    assert visible_rows(log) == []
    assert list(log.shards(WINDOW)) == []


def test_committing_a_shard_again_changes_nothing(log: CommitLog) -> None:
    first = write_shard(log, "a-0", [0, 1, 3])
    before = {path: log.fs.cat_file(path) for path in log.fs.find(log.root)}
    again = write_shard(log, "a-0", [2, 1])
    assert (again.data, again.dead, again.rows.tolist()) == (first.data, first.dead, first.rows.tolist())
    assert {path: log.fs.cat_file(path) for path in log.fs.find(log.root)} == before


def test_shards_of_another_window_are_apart(log: CommitLog) -> None:
    write_shard(log, "a-0", [0], window=1)
    write_shard(log, "a-0", [0], window=10)
    assert [s.name for s in log.shards(1)] == ["w000001-a-0"]
    log.finish_window(1, 1)
    assert list(log.finished_windows()) == [1]
    assert len(log.committed_files("data")) == 2


@given(st.lists(st.integers(0, 40), unique=True, min_size=1), st.lists(st.none() | st.integers(0, 3), max_size=5))
def test_after_any_crashes_a_retry_leaves_each_row_once(rows: list[int], crashes: list[int | None]) -> None:
    log = CommitLog(memory_url())
    half = len(rows) // 2
    for crash in [*crashes, None]:
        try:
            with crash_at(crash):
                for number, part in enumerate((rows[:half], rows[half:])):
                    write_shard(log, f"a-{number}", part)
        except KilledError:
            assert set(visible_rows(log)) <= set(rows)
    assert visible_rows(log) == sorted(rows)
    log.finish_window(WINDOW, len(rows))
    assert visible_rows(log) == sorted(rows)


def test_a_shard_that_repeats_rows_is_hidden_until_the_window_is_finished(log: CommitLog) -> None:
    write_shard(log, "a-0", [0, 1, 3])
    write_shard(log, "b-0", [1, 2, 3, 7])
    assert visible_rows(log) == [0, 1, 3]
    log.finish_window(WINDOW, 5)
    assert visible_rows(log) == [0, 1, 2, 3, 7]


def test_a_row_answered_twice_keeps_its_first_answer(log: CommitLog) -> None:
    write_shard(log, "a-0", [1, 0])
    write_shard(log, "b-0", [2, 1])
    log.finish_window(WINDOW, 3)
    assert sorted(visible(log, "data", "output")) == ["a-0:0", "a-0:1", "b-0:2"]


def test_a_shard_with_only_repeated_rows_is_dropped(log: CommitLog) -> None:
    write_shard(log, "a-0", [0, 1, 3])
    write_shard(log, "b-0", [3, 1])
    files = log.finish_window(WINDOW, 3)
    assert (len(files.data), len(files.dead), visible_rows(log)) == (1, 1, [0, 1, 3])


def test_a_window_marker_counts_what_its_files_hold(log: CommitLog) -> None:
    write_shard(log, "a-0", [0, 1, 3, 5])
    write_shard(log, "b-0", [5, 6, 7, 3])
    files = log.finish_window(WINDOW, 6)
    assert files.tally == tally_of([0, 1, 3, 5, 6, 7])
    assert log.finished_windows() == {WINDOW: files}


def test_a_shard_that_comes_after_its_window_is_finished_changes_nothing(log: CommitLog) -> None:
    write_shard(log, "b-0", [0, 1])
    files = log.finish_window(WINDOW, 2)
    write_shard(log, "a-0", [0, 1, 2, 3])
    write_shard(log, "b-0", [2])
    assert visible_rows(log) == [0, 1]
    assert log.finished_windows() == {WINDOW: files}


@pytest.mark.parametrize("write", [0, 1, 2])
def test_a_window_whose_end_was_cut_off_is_finished_by_the_next_try(log: CommitLog, write: int) -> None:
    write_shard(log, "a-0", [0, 1, 3])
    write_shard(log, "b-0", [1, 2, 3, 7])
    with crash_at(write), pytest.raises(KilledError):
        log.finish_window(WINDOW, 5)
    assert visible_rows(log) == [0, 1, 3]
    write_shard(log, "a-1", [4])
    log.finish_window(WINDOW, 6)
    assert visible_rows(log) == [0, 1, 2, 3, 4, 7]


def test_no_marker_is_written_over_a_part_of_a_window(log: CommitLog) -> None:
    write_shard(log, "a-0", [0, 1, 3])
    with pytest.raises(FileNotFoundError):  # as if the store listed one shard of two
        log.finish_window(WINDOW, 4)
    assert (visible_rows(log), log.finished_windows()) == ([0, 1, 3], {})
    files = log.finish_window(WINDOW, 3)
    assert CommitLog(log.url).finish_window(WINDOW, 3) == files, "finished by another driver, and swept"


def test_files_of_other_tools_are_no_markers(log: CommitLog) -> None:
    write_shard(log, "a-0", [0])
    for name in ("README.txt", "window-.tmp", ".w000003-b-0.json.part", f"{shard_prefix(WINDOW)}b-0.json.tmp"):
        log.fs.pipe_file(f"{log.root}/_commits/{name}", b"x")
    log.fs.pipe_file(f"{log.root}/data/half.parquet", b"x")
    assert (visible_rows(log), list(log.finished_windows())) == ([0], [])


def test_a_log_can_be_sent_to_another_process(log: CommitLog) -> None:
    sent: CommitLog = pickle.loads(pickle.dumps(log))
    write_shard(sent, "a-0", [0])
    assert visible_rows(log) == [0]


@given(st.lists(st.lists(st.integers(0, 30), unique=True), max_size=5))
def test_tallies_add_up(parts: list[list[int]]) -> None:
    added = reduce(lambda a, b: a + b, map(tally_of, parts), Tally())
    rows = [row for part in parts for row in part]
    answered = [r for r in rows if not is_dead(r)]
    assert (added.data, added.dead) == (len(answered), len(rows) - len(answered))
    assert (added.prompt_tokens, added.completion_tokens) == (sum(answered), 2 * sum(answered))
    assert added.fallback == sum(r % 5 == 0 for r in answered)
    assert added.mixtures == Counter(f"m{r % 3}:1.0" for r in answered)
    assert added.finish_reasons == Counter("stop" if r % 2 else "length" for r in answered)
    assert added.errors == Counter(f"Error{r % 2}" for r in rows if is_dead(r))


def shard_of(name: str, rows: list[int], run: str) -> tuple[Shard, pa.Table, pa.Table]:
    data, dead = data_table(rows), dead_table([])
    return Shard(name, None, None, np.array(rows), np.empty(0, np.int64), tally(data, dead), run), data, dead


def test_what_another_run_commits_late_answers_nothing(log: CommitLog) -> None:
    own, late = f"{shard_prefix(WINDOW)}a-0", f"{shard_prefix(WINDOW)}b-0"
    log.run = "of today"
    log.commit(*shard_of(late, [0, 1, 2], "of yesterday"))
    assert list(log.shards(WINDOW)) == []
    assert log.committed_files("data") == []
    log.commit(*shard_of(own, [0, 1, 2], "of today"))
    files = log.finish_window(WINDOW, 3)
    assert files.tally.data == 3
    assert [own in name for name in files.data] == [True]
    assert names(log.fs, log.path("data")) == [files.data[0].removeprefix("data/")]


def test_a_driver_that_slept_before_its_sweep_removes_nothing_that_is_newer(log: CommitLog) -> None:
    """Meanwhile another one has taken over, and given the window a new marker with files of its own."""
    log.commit(*shard_of(f"{shard_prefix(WINDOW)}a-0", [0, 1, 2], ""))
    other = CommitLog(log.url)
    marked: list[WindowFiles] = []

    def create_and_sleep(fs: fsspec.AbstractFileSystem, path: str, content: bytes) -> bool:
        created = create(fs, path, content)
        if not marked:
            marked.append(WindowFiles([], [], Tally()))
            before = other.finished_windows()[WINDOW]
            amended = other.write_table("data", f"{shard_prefix(WINDOW)}retry", data_table([4]))
            assert amended is not None
            marked.append(other.replace_window(WINDOW, WindowFiles([*before.data, amended], [], Tally(data=4))))
        return created

    with mock.patch.object(commit_module, "create", create_and_sleep):
        told = log.finish_window(WINDOW, 3)
    assert told == marked[1] == other.finished_windows()[WINDOW]
    assert visible_rows(other) == [0, 1, 2, 4]
    assert names(log.fs, log.path("_commits")) == [f"window-{WINDOW:06d}-001.json"]


ROWS = 10
row_sets = st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1)
crashes = st.none() | st.integers(0, 10)


class WindowMachine(RuleBasedStateMachine):
    """Drivers and writers of one window that are killed and tried again, late ones among them."""

    def __init__(self) -> None:
        super().__init__()
        self.log = CommitLog(memory_url())
        self.tasks: dict[str, list[int]] = {}  # the rows of every write task that was ever started
        self.attempt = 0
        self.finished = False

    @initialize(rows=row_sets)
    def first_task(self, rows: list[int]) -> None:
        self._write(f"{self.attempt:03d}-000000", rows, None)

    @rule(rows=row_sets, crash=crashes, late=st.booleans())
    def write(self, rows: list[int], crash: int | None, late: bool) -> None:
        """A task of this driver, or of one that was killed, with any rows: answered before, or not."""
        attempt = 0 if late else self.attempt
        task = sum(name.startswith(f"{attempt:03d}") for name in self.tasks)
        self._write(f"{attempt:03d}-{task:06d}", rows, crash)

    @rule(data=st.data(), crash=crashes)
    def retry(self, data: st.DataObject, crash: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.tasks)))
        self._write(name, self.tasks[name], crash)

    @rule()
    def new_driver(self) -> None:
        self.attempt += 1
        self.log = CommitLog(self.log.url)

    @precondition(lambda self: not self.finished)
    @rule(crash=crashes, join=st.sampled_from([0, 1, 10_000, 1_000_000]))
    def finish(self, crash: int | None, join: int) -> None:
        """Answer the rows that are missing in this driver's tasks, then close the window, as the job does."""
        answered = {row for shard in self.log.shards(WINDOW) for row in shard.rows.tolist()}
        missing = sorted(set(range(ROWS)) - answered)
        if missing:
            task = sum(name.startswith(f"{self.attempt:03d}") for name in self.tasks)
            self._write(f"{self.attempt:03d}-{task:06d}", missing, None)
        try:
            with crash_at(crash):
                self.log.finish_window(WINDOW, ROWS, partial(merge_files, self.log, WINDOW, join))
        except KilledError:
            self.finished = WINDOW in self.log.finished_windows()
            return
        self.finished = True
        self._only_named_files_are_left()

    @precondition(lambda self: self.finished)
    @rule(crash=crashes)
    def sweep(self, crash: int | None) -> None:
        """What a driver that resumes does first."""
        try:
            with crash_at(crash):
                swept = self.log.sweep_finished()
        except KilledError:
            return
        if swept:
            self._only_named_files_are_left()

    def _only_named_files_are_left(self) -> None:
        for kind in ("data", "dead"):
            named = sorted(path.rsplit("/", 1)[1] for path in self.log.committed_files(kind))
            assert names(self.log.fs, f"{self.log.root}/{kind}") == named
        assert names(self.log.fs, f"{self.log.root}/_commits") == [f"window-{WINDOW:06d}.json"]

    @invariant()
    def no_row_is_seen_twice(self) -> None:
        rows = visible_rows(self.log)
        assert len(rows) == len(set(rows))

    @invariant()
    def a_finished_window_has_every_row_once_and_counts_it(self) -> None:
        if self.finished:
            assert visible_rows(self.log) == list(range(ROWS))
            assert self.log.finished_windows()[WINDOW].tally == tally_of(list(range(ROWS)))

    def _write(self, name: str, rows: list[int], crash: int | None) -> None:
        self.tasks[name] = rows
        try:
            with crash_at(crash):
                write_shard(self.log, name, rows)
        except KilledError:
            return


WindowMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=15)


TestWindow = WindowMachine.TestCase
