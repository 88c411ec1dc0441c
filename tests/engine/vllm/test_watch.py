"""When vLLM counts as hanging: requests wait, and no pass has ended for too long."""

import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from pipeline.engine.vllm import watch as module
from pipeline.engine.vllm.watch import PassWatch


class Clock:
    """A clock that is set, and how long the pass in work has taken by what a watch tells its thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.since: Callable[[], float] = lambda: 0.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module, "watch_passes", lambda seconds, since, *rest: setattr(self, "since", since))

    @property
    def taken(self) -> float:
        return self.now - self.since()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_time_counts_from_the_last_pass_while_requests_wait_and_only_then(clock: Clock) -> None:
    watch = PassWatch(5.0, lambda: None)
    clock.now += 1000
    assert clock.taken == 0
    with watch.watching():
        clock.now += 4
        assert clock.taken == 4
        watch.record_pass("first")
        assert clock.taken == 0
        clock.now += 3
        with watch.watching():  # who comes later changes nothing for those who wait
            assert clock.taken == 3
        clock.now += 1
        assert clock.taken == 4
    assert clock.taken == 0
    clock.now += 1000
    with watch.watching():
        assert clock.taken == 0


def test_time_counts_anew_after_an_error(clock: Clock) -> None:
    watch = PassWatch(5.0, lambda: None)
    with pytest.raises(KeyError), watch.watching():
        raise KeyError
    clock.now += 1000
    assert clock.taken == 0


def test_stats_are_those_of_the_last_pass_that_had_some(clock: Clock) -> None:
    watch = PassWatch(5.0, lambda: None)
    assert watch.last_stats is None
    for stats in ("first", None, "second", None):
        watch.record_pass(stats)
    assert watch.last_stats == "second"


@pytest.mark.long
def test_requests_without_a_pass_are_told_once() -> None:
    told: list[int] = []
    hung = threading.Event()

    def on_hang() -> None:
        told.append(1)
        hung.set()

    watch = PassWatch(0.2, on_hang)
    assert not hung.wait(1)  # nobody waits
    with watch.watching():
        assert hung.wait(20)
        assert not threading.Event().wait(0.5)
    assert told == [1]
