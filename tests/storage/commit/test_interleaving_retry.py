"""Commands that try the dead letters of one window again, each of which believes that it alone does."""

import io
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from pipeline.records import DEAD
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.orphans import remove_orphans, sweep_finished_windows
from pipeline.storage.commit.replace import RetryFilter, replace_dead_letters, rows_to_retry
from pipeline.storage.commit.window import commit_shard, finish_window
from pipeline.storage.store.objects import StoreError, list_names
from tests import examples
from tests.storage import memory_url
from tests.storage.commit.committing import WINDOW, data_table
from tests.storage.commit.stepping import Actor, Interleaving

ROWS = 8


class TakenOverError(Exception):
    """The command looked at its lease, and another one holds it."""


def letters(rows: list[int]) -> pa.Table:
    values = {"id": [str(r) for r in rows], "stage": ["generate"] * len(rows), "row": rows}
    values |= {"error_type": [f"Error{r % 2}" for r in rows]}
    return pa.table([pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in DEAD], schema=DEAD)


def write(store: MarkerStore, name: str, answered: list[int], dead: list[int]) -> None:
    """A shard of rows that are answered, and of rows that are dead (again)."""
    tables = data_table(answered), letters(dead)
    places = np.array(answered, np.int64), np.array(dead, np.int64)
    commit_shard(store, Shard(f"{store.shard_prefix(WINDOW)}{name}", None, None, *places, count_rows(*tables)), *tables)


def seen(store: MarkerStore, kind: str) -> list[int]:
    files = [io.BytesIO(store.fs.cat_file(path)) for path in store.committed_files(kind)]
    return [int(identity) for file in files for identity in pq.read_table(file)["id"].to_pylist()]


class Retried(Interleaving):
    """A command may sleep at any step at the store, while its writers go on, and others take over and end.

    What the shards of the finished run left lies there still if its driver was killed before its end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.url = memory_url()
        self.store = self._new_log()
        write(self.store, "a-0", [0, 4], [])
        write(self.store, "b-0", [], [1, 2, 3, 5, 6, 7])
        finish_window(self.store, WINDOW, ROWS, 1_000_000)
        self.answered = {0, 4}
        self.sessions: list[tuple[MarkerStore, list[int]]] = []
        self.holder = 0  # the command that holds the lease

    @initialize(is_ended=st.booleans())
    def end_the_run(self, is_ended: bool) -> None:
        if is_ended:
            sweep_finished_windows(self.store)
            remove_orphans(self.store)

    def end(self) -> None:
        """However it came: the next command, alone, answers all that is left, and nothing else lies there."""
        self._retry(10_000, [], False)
        assert (sorted(seen(self.store, "data")), seen(self.store, "dead")) == (list(range(ROWS)), [])
        for kind in ("data", "dead"):
            named = sorted(path.rsplit("/", 1)[1] for path in self.store.committed_files(kind))
            assert list_names(self.store.fs, self.store.path(kind)) == named
        assert len(list_names(self.store.fs, self.store.path("_commits"))) == 1

    @precondition(lambda self: self.working() < 4)
    @rule(dead=st.lists(st.integers(0, ROWS - 1), unique=True), odd=st.booleans())
    def begin(self, dead: list[int], odd: bool) -> None:
        """A command, which takes the lease over: it tries all letters, or those of one error; some are dead again."""
        number = len(self.actors)

        def work() -> None:
            with suppress(TakenOverError, StoreError, FileNotFoundError):
                self._retry(number, dead, odd)

        self.holder = number
        self.actors.append(Actor(work))

    @precondition(lambda self: self.sessions and self.working() < 4)
    @rule(data=st.data())
    def write_late(self, data: st.DataObject) -> None:
        """A task of a command, which may have ended long ago."""
        store, retried = data.draw(st.sampled_from(self.sessions))
        rows = data.draw(st.lists(st.sampled_from(retried), min_size=1, unique=True))
        name = f"late-{len(self.actors)}"
        self.actors.append(Actor(lambda: write(store, name, sorted(rows), [])))

    @invariant()
    def look(self) -> None:
        data, dead = seen(self.store, "data"), seen(self.store, "dead")
        assert sorted(data + dead) == list(range(ROWS))
        assert self.answered <= set(data), "an answer that was there is lost"
        self.answered = set(data)
        counted = self.store.newest_marker(WINDOW)[1].counts
        assert (counted.data, counted.dead) == (len(data), len(dead))

    def _retry(self, number: int, dead: list[int], odd: bool) -> None:
        """What `RetryJob` does with the store."""

        def check() -> None:
            if number not in (self.holder, 10_000):
                raise TakenOverError

        store = self._new_log()
        sweep_finished_windows(store, check, fence=True)
        store = store.with_session()
        wanted = RetryFilter(errors=["Error1"] if odd else None)
        retried = rows_to_retry(store, store.newest_marker(WINDOW)[1], wanted)
        if len(retried):
            marker, _ = store.newest_marker(WINDOW)
            self.sessions.append((store, retried.tolist()))
            for place, part in enumerate(np.array_split(retried, 2)):
                rows = part.tolist()
                write(store, f"{number}-{place}", [r for r in rows if r not in dead], [r for r in rows if r in dead])
            check()
            replace_dead_letters(store, WINDOW, marker, 0, retried)
        remove_orphans(store, check, fence=True)

    def _new_log(self) -> MarkerStore:
        return MarkerStore(self.url, "today")


class ManyRetried(Retried):
    """Enough to find each of the steps missing."""


Retried.TestCase.settings = settings(max_examples=examples(12), stateful_step_count=30, deadline=None)
ManyRetried.TestCase.settings = settings(max_examples=examples(200), stateful_step_count=30, deadline=None)

TestRetried = pytest.mark.long(Retried.TestCase)
TestManyRetried = pytest.mark.slow(ManyRetried.TestCase)
