"""Writers and drivers of one window that wait before each step at the store while others go on, or die there."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any
from unittest import mock

import pytest
from hypothesis import event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pipeline.storage import commit as commit_module
from pipeline.storage import many as many_module
from pipeline.storage import outputs as outputs_module
from pipeline.storage.commit import CommitLog
from pipeline.storage.merge import merge_files
from pipeline.storage.objects import create, names, put, read, remove
from pipeline.storage.sweep import sweep_unnamed

from . import memory_url
from .committing import WINDOW, KilledError, tally_of, visible_rows, write_shard

ROWS = 8
_here = threading.local()


class Actor:
    """A thread that runs only while `step` is called, up to its next step at the store."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._go, self._waits = threading.Semaphore(0), threading.Semaphore(0)
        self._killed = False
        self._error: Exception | None = None
        self.done = False
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()
        self._waits.acquire()

    def step(self) -> None:
        """One step further; what went wrong is raised here."""
        self._go.release()
        self._waits.acquire()
        if self._error is not None:
            raise self._error

    def kill(self) -> None:
        """End it where it waits."""
        self._killed = True
        while not self.done:
            self.step()
        self._thread.join()

    def wait(self) -> None:
        """Called by the thread: hand over, until it is its turn again."""
        self._waits.release()
        self._go.acquire()
        if self._killed:
            raise KilledError

    def _run(self, work: Callable[[], Any]) -> None:
        _here.actor = self
        try:
            self.wait()
            work()
        except KilledError:
            pass
        except Exception as error:
            self._error = error
        finally:
            self.done = True
            self._waits.release()


def waiting(call: Callable[..., Any]) -> Callable[..., Any]:
    """A call before which an actor waits."""

    def wait_and_call(*args: Any) -> Any:
        if actor := getattr(_here, "actor", None):
            actor.wait()
        return call(*args)

    return wait_and_call


@contextmanager
def in_steps() -> Iterator[None]:
    """Let each actor wait before it lists, reads, writes or removes objects."""
    with (
        mock.patch.object(outputs_module, "put", waiting(put)),
        mock.patch.object(commit_module, "create", waiting(create)),
        mock.patch.object(commit_module, "names", waiting(names)),
        mock.patch.object(commit_module, "read", waiting(read)),
        mock.patch.object(many_module, "read", waiting(read)),
        mock.patch.object(many_module, "remove", waiting(remove)),
    ):
        yield


class Interleaved(RuleBasedStateMachine):
    """Several drivers believe that the window is theirs; some, and some tasks, are of a run that was discarded."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = in_steps()
        self._steps.__enter__()
        self.log = CommitLog(memory_url())
        self.discarded = CommitLog(self.log.url)
        self.log.run, self.discarded.run = "today", "yesterday"
        self.actors: list[Actor] = []
        self.finished = False

    def teardown(self) -> None:
        """Whatever happened: the next driver, alone, ends with each row once, and nothing else is left."""
        try:
            for actor in self.actors:
                actor.kill()
            if WINDOW not in self.log.finished_windows():
                self._finish(self.log, "last", 10_000)
            self.log.sweep_finished()
            sweep_unnamed(self.log)
            self.a_finished_window_has_every_row_once()
            for kind in ("data", "dead"):
                named = sorted(path.rsplit("/", 1)[1] for path in self.log.committed_files(kind))
                assert names(self.log.fs, self.log.path(kind)) == named
            assert names(self.log.fs, self.log.path("_commits")) == [f"window-{WINDOW:06d}-today.json"]
        finally:
            self._steps.__exit__(None, None, None)

    @precondition(lambda self: self._working() < 4)
    @rule(
        what=st.sampled_from(["write", "finish", "sweep"]),
        late=st.sampled_from([False, False, True]),
        rows=st.lists(st.integers(0, ROWS - 1), unique=True, min_size=1),
        join=st.sampled_from([0, 1, 10_000, 1_000_000]),
    )
    def start(self, what: str, late: bool, rows: list[int], join: int) -> None:
        """A task with any rows, answered before or not; a driver at the end of its window, or one that resumes."""
        log = self.discarded if late else self.log
        name = f"{len(self.actors):03d}-0"
        kinds: dict[str, Callable[[], Any]] = {
            "write": partial(write_shard, log, name, rows),
            "finish": partial(self._finish, log, name, join),
            "sweep": log.sweep_finished,
        }

        def work() -> None:
            with suppress(FileNotFoundError):  # what another driver finished and swept may vanish under its eyes
                kinds[what]()

        self.actors.append(Actor(work))

    @precondition(lambda self: self._working())
    @rule(data=st.data(), steps=st.integers(1, 30))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        actor = data.draw(st.sampled_from([actor for actor in self.actors if not actor.done]))
        for _ in range(steps):
            if not actor.done:
                actor.step()
                self.no_row_is_seen_twice()

    @precondition(lambda self: self._working())
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([actor for actor in self.actors if not actor.done])).kill()

    @invariant()
    def no_row_is_seen_twice(self) -> None:
        rows = visible_rows(self.log)
        assert len(rows) == len(set(rows))
        assert not [path for kind in ("data", "dead") for path in self.log.committed_files(kind) if "yesterday" in path]

    @invariant()
    def a_finished_window_has_every_row_once(self) -> None:
        self.finished = self.finished or WINDOW in self.log.finished_windows()
        if self.finished:  # once and for all
            event(f"finished with {self._working()} at work")
            assert visible_rows(self.log) == list(range(ROWS))
            assert self.log.finished_windows()[WINDOW].tally == tally_of(list(range(ROWS)))

    @staticmethod
    def _finish(log: CommitLog, name: str, join: int) -> None:
        answered = {row for shard in log.shards(WINDOW) for row in shard.rows.tolist()}
        if missing := sorted(set(range(ROWS)) - answered):
            write_shard(log, name, missing)
        log.finish_window(WINDOW, ROWS, partial(merge_files, log, WINDOW, join))

    def _working(self) -> int:
        return sum(not actor.done for actor in self.actors)


class ManyInterleaved(Interleaved):
    """Enough to find a window marker that is written over another one."""


Interleaved.TestCase.settings = settings(max_examples=12, stateful_step_count=30, deadline=None)
ManyInterleaved.TestCase.settings = settings(max_examples=600, stateful_step_count=30, deadline=None)


TestInterleaved = Interleaved.TestCase
TestManyInterleaved = pytest.mark.slow(ManyInterleaved.TestCase)
