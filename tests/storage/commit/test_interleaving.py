"""Writers, drivers and readers of one window that wait at each step at the store while others go on, or die there."""

import io
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.orphans import remove_orphans, sweep_finished_windows
from pipeline.storage.commit.window import finish_window
from pipeline.storage.store.objects import list_names
from tests import examples
from tests.storage import memory_url
from tests.storage.commit.committing import WINDOW, is_dead, tally_of, visible_rows, write_shard
from tests.storage.commit.stepping import Actor, Interleaving, waiting

ROWS = 8


class LeaseLostError(Exception):
    """The driver of a discarded run finds that another one has taken the output over."""


class Interleaved(Interleaving):
    """Several drivers believe that the window is theirs; some, and some tasks, are of a run that was discarded.

    What a finished window left lies there until a driver ends the job: until then, readers find what they opened.
    """

    def __init__(self) -> None:
        super().__init__()
        self.store = MarkerStore(memory_url(), "today")
        self.discarded = MarkerStore(self.store.url, "yesterday")
        self.finished = self.swept = False

    def end(self) -> None:
        """Whatever happened: the next driver, alone, ends with each row once, and nothing else is left."""
        if WINDOW not in self.store.finished_markers():
            self._finish(self.store, "last", 10_000)
        sweep_finished_windows(self.store)
        remove_orphans(self.store)
        self.a_finished_window_has_every_row_once()
        for kind in ("data", "dead"):
            named = sorted(path.rsplit("/", 1)[1] for path in self.store.committed_files(kind))
            assert list_names(self.store.fs, self.store.path(kind)) == named
        assert list_names(self.store.fs, self.store.path("_commits")) == [f"window-{WINDOW:06d}-today.json"]

    @precondition(lambda self: self.working() < 4)
    @rule(
        what=st.sampled_from(["write", "finish", "read", "sweep", "end"]),
        late=st.sampled_from([False, False, True]),
        rows=st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1),
        join=st.sampled_from([0, 1, 10_000, 1_000_000]),
    )
    def start(self, what: str, late: bool, rows: list[int], join: int) -> None:
        """A task with any rows, answered before or not; a driver at the end of its window or of its job; a reader."""
        store = self.discarded if late else self.store
        name = f"{len(self.actors):03d}-0"
        kinds: dict[str, Callable[[], Any]] = {
            "write": partial(write_shard, store, name, rows),
            "finish": partial(self._finish, store, name, join),
            "read": partial(self._read, self.store),
            "sweep": partial(self._sweep, store),
            "end": partial(self._end, store),
        }

        def work() -> None:
            # What another driver finished and swept may vanish under its eyes.
            with suppress(FileNotFoundError, LeaseLostError):
                kinds[what]()

        self.actors.append(Actor(work))
        if what == "finish":
            self.actors.append(Actor(partial(self._read, self.store)))

    @invariant()
    def look(self) -> None:
        rows = visible_rows(self.store)
        assert len(rows) == len(set(rows))
        assert not [
            path for kind in ("data", "dead") for path in self.store.committed_files(kind) if "yesterday" in path
        ]

    @invariant()
    def a_finished_window_has_every_row_once(self) -> None:
        self.finished = self.finished or WINDOW in self.store.finished_markers()
        if self.finished:  # once and for all
            event(f"finished with {self.working()} at work")
            assert visible_rows(self.store) == list(range(ROWS))
            assert self.store.newest_marker(WINDOW)[1].counts == tally_of(list(range(ROWS)))

    @staticmethod
    def _finish(store: MarkerStore, name: str, join: int) -> None:
        answered = {row for shard in store.shards(WINDOW) for row in shard.rows.tolist()}
        if missing := sorted(set(range(ROWS)) - answered):
            write_shard(store, name, missing)
        finish_window(store, WINDOW, ROWS, join)

    def _sweep(self, store: MarkerStore) -> None:
        self.swept = self.swept or store is self.store
        sweep_finished_windows(store)

    def _end(self, store: MarkerStore) -> None:
        """The end of the job, once all windows are finished; a discarded run finds that it has lost its lease."""

        def check_lease() -> None:
            if store is self.discarded:
                raise LeaseLostError

        if WINDOW in store.finished_markers():
            self._sweep(store)
            remove_orphans(store, check_lease)

    def _read(self, store: MarkerStore) -> None:
        """List the files, then read them one by one, each after any time."""
        is_last = WINDOW in store.finished_markers()
        for kind in ("data", "dead"):
            try:
                rows = [row for path in store.committed_files(kind) for row in self._rows_of(store, path)]
            except FileNotFoundError:
                assert self.swept, "a file that a reader opened was removed before the end of the job"
                assert not is_last, "a file of a finished window was removed"
            else:
                assert len(rows) == len(set(rows))
                every = [row for row in range(ROWS) if is_dead(row) == (kind == "dead")]
                assert sorted(rows) == every if is_last else set(rows) <= set(every)

    @staticmethod
    @waiting
    def _rows_of(store: MarkerStore, path: str) -> list[int]:
        return [int(identity) for identity in pq.read_table(io.BytesIO(store.fs.cat_file(path)))["id"].to_pylist()]


class ManyInterleaved(Interleaved):
    """Enough to find a window marker that is written over another one."""


Interleaved.TestCase.settings = settings(max_examples=examples(12), stateful_step_count=30, deadline=None)
ManyInterleaved.TestCase.settings = settings(max_examples=examples(600), stateful_step_count=30, deadline=None)


TestInterleaved = pytest.mark.long(Interleaved.TestCase)
TestManyInterleaved = pytest.mark.slow(ManyInterleaved.TestCase)
