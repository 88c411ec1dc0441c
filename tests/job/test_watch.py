"""The error budget, the watch over a pass, and stopping."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from pipeline.job import watch as watch_module
from pipeline.job.error_budget import ErrorBudget
from pipeline.job.stop import SIGTERM, StopKind, StoppedError, StopReason, StopSwitch
from pipeline.job.watch import Watch
from pipeline.storage.commit.counts import Counts
from pipeline.telemetry.incidents import Incidents
from tests.telemetry import local_incidents


@pytest.mark.parametrize(
    ("rule", "allowed"),
    [
        ((0.01, None, 1000), 10),
        ((0.01, 3, 1000), 3),
        ((0.01, 50, 1000), 10),
        ((1.0, None, 5), 5),
        ((0.0, None, 5), 0),
        ((0.5, 0, 9), 0),
    ],
)
def test_the_budget_is_the_smaller_of_share_and_number(rule: tuple[float, int | None, int], allowed: int) -> None:
    budget = ErrorBudget(*rule)
    assert not budget.problem(Counts(dead=allowed))
    assert budget.problem(Counts(dead=allowed + 1))


def test_the_most_frequent_errors_are_named_first() -> None:
    budget = ErrorBudget(0.0, None, 10)
    said = budget.problem(Counts(dead=9, errors={"A": 1, "B": 5, "C": 1, "D": 1, "E": 1, "F": 0}))
    assert said == "9 dead letters, over errors.budget=0 of 10 records: 5 B, 1 A, 1 C, 1 D, 1 E"


class Looks:
    """Looks of a watch at its incidents, one by one: `look` returns once a look that began after it has ended."""

    def __init__(self, incidents: Incidents) -> None:
        self._incidents, self._count = incidents, incidents.failures
        self._begun = threading.Semaphore(0)
        self.stopped, self.stalled = list[StopReason](), list[int]()
        self.is_stopped, self.is_stalled = threading.Event(), threading.Event()

    def failures(self) -> int:
        self._begun.release()
        return self._count()

    def look(self) -> None:
        """Wait for the next look but one: what was there before is then taken into account."""
        while self._begun.acquire(blocking=False):
            pass
        for _ in range(2):
            assert self._begun.acquire(timeout=20)

    def fail(self, times: int, error: str = "CUDA is gone", stage: str = "generate") -> None:
        for _ in range(times):
            with suppress(RuntimeError), self._incidents.recording(stage):
                raise RuntimeError(error)

    def stop(self, reason: StopReason) -> None:
        self.stopped.append(reason)
        self.is_stopped.set()

    def stall(self) -> None:
        self.stalled.append(1)
        self.is_stalled.set()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    monkeypatch.setattr(watch_module, "SECONDS", 0.001)
    incidents = local_incidents(monkeypatch)
    looks = Looks(incidents)
    monkeypatch.setattr(incidents, "failures", looks.failures)
    return looks


@contextmanager
def watching(looks: Looks, engines: int) -> Iterator[Watch]:
    with Watch(looks._incidents, engines, looks.stop, looks.stall) as watch:
        looks.look()
        yield watch


def test_a_pass_in_which_everything_fails_is_stopped_with_the_most_frequent_reason(looks: Looks) -> None:
    looks.fail(1000)  # of an earlier pass
    with watching(looks, 2):
        looks.fail(9, "another", "route")
        looks.fail(15, "the disk is full")
        looks.look()
        assert looks.stopped == [], "16, and 4 for each engine"
        looks.fail(1)
        assert looks.is_stopped.wait(20)
    said = "no shard succeeds any more: generate: RuntimeError: CUDA is gone"
    assert looks.stopped == [StopReason(StopKind.FAILING, said)], "told once"


def test_engines_that_die_without_a_word_stop_the_pass_too(looks: Looks) -> None:
    with watching(looks, 1):
        for actor in range(21):
            with looks._incidents.recording("generate", "start"):
                pass
            assert actor < 21
        assert looks.is_stopped.wait(20)
    said = "no shard succeeds any more: generating actors died (see the logs of Ray)"
    assert looks.stopped == [StopReason(StopKind.FAILING, said)]


def test_a_shard_shows_that_the_failures_before_it_were_of_single_records(looks: Looks) -> None:
    with watching(looks, 1) as watch:
        for _ in range(3):
            looks.fail(20)
            looks.look()
            watch.committed()
            looks.look()
        assert looks.stopped == []
        looks.fail(21)
        assert looks.is_stopped.wait(20)


def test_a_pass_of_single_records_is_not_stopped_by_failures(looks: Looks) -> None:
    with watching(looks, 0):
        looks.fail(500)
        looks.look()
    assert (looks.stopped, looks.stalled) == ([], [])


def test_it_is_said_each_time_that_nothing_was_committed_for_long(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(watch_module, "time", Clock(now))
    with watching(looks, 1) as watch:
        now[0] += watch_module.STALL_SECONDS
        looks.look()
        watch.committed()
        now[0] += watch_module.STALL_SECONDS
        looks.look()
        assert looks.stalled == []
        for times in (1, 2):
            now[0] += watch_module.STALL_SECONDS + 1
            assert looks.is_stalled.wait(20)
            looks.is_stalled.clear()
            looks.look()
            assert len(looks.stalled) == times
    assert looks.stopped == []


class Clock:
    """A clock that stands until it is set."""

    def __init__(self, now: list[float]) -> None:
        self._now = now

    def monotonic(self) -> float:
        return self._now[0]


def test_a_stop_from_a_thread_ends_a_wait_of_the_main_thread() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with StopSwitch() as switch:
        threading.Timer(0.1, switch.stop, [StopReason(StopKind.BUDGET, "over budget")]).start()
        with pytest.raises(StoppedError, match="over budget"):
            time.sleep(20)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_sigterm_is_a_stop() -> None:
    with StopSwitch():
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGTERM]).start()
        with pytest.raises(StoppedError, match="SIGTERM") as caught:
            time.sleep(20)
    assert caught.value.reason == SIGTERM


def test_in_another_thread_the_stop_comes_at_the_next_check() -> None:
    caught: list[str] = []

    def work() -> None:
        with StopSwitch() as switch:
            switch.stop(StopReason(StopKind.LEASE_LOST, "lease lost"))
            try:
                switch.check()
            except StoppedError as error:
                caught.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert caught == ["lease lost"]
