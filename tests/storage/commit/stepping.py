"""Threads that wait before each step at the store while others go on, or die there: to test what may interleave."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from pipeline.storage.commit import marker_store as markers_module
from pipeline.storage.commit import orphans as sweep_module
from pipeline.storage.commit import output_files as outputs_module
from pipeline.storage.store import bulk as many_module
from pipeline.storage.store.objects import create, list_names, put, read, remove
from tests.storage.commit.committing import KilledError

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
        mock.patch.object(markers_module, "create", waiting(create)),
        mock.patch.object(markers_module, "list_names", waiting(list_names)),
        mock.patch.object(markers_module, "read", waiting(read)),
        mock.patch.object(many_module, "read", waiting(read)),
        mock.patch.object(many_module, "remove", waiting(remove)),
        mock.patch.multiple(sweep_module, list_names=waiting(list_names), remove=waiting(remove)),
    ):
        yield


class Interleaving(RuleBasedStateMachine):
    """Actors that go on, any number of steps at a time, or are killed. ``look``: what must be true after each step."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = in_steps()
        self._steps.__enter__()
        self.actors: list[Actor] = []

    def teardown(self) -> None:
        """Kill who still works, and `end`."""
        try:
            for actor in self.actors:
                actor.kill()
            self.end()
        finally:
            self._steps.__exit__(None, None, None)

    def look(self) -> None:
        """Raise where something is wrong."""
        raise NotImplementedError

    def end(self) -> None:
        """What the next driver does, alone, and what must be there then."""
        raise NotImplementedError

    @precondition(lambda self: self.working())
    @rule(data=st.data(), steps=st.integers(1, 30))
    def go_on(self, data: st.DataObject, steps: int) -> None:
        actor = data.draw(st.sampled_from([actor for actor in self.actors if not actor.done]))
        for _ in range(steps):
            if not actor.done:
                actor.step()
                self.look()

    @precondition(lambda self: self.working())
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([actor for actor in self.actors if not actor.done])).kill()

    def working(self) -> int:
        """How many actors have not come to their end."""
        return sum(not actor.done for actor in self.actors)
