"""The error budget, the watch over a window's markers, and stopping."""

import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from pipeline.job.windows import Windows

from pipeline.cluster.resources import StageResources
from pipeline.job import watch as watch_module
from pipeline.job import windows as windows_module
from pipeline.job.error_budget import ErrorBudget
from pipeline.job.stop import SIGTERM, StopKind, StoppedError, StopReason, StopSwitch
from pipeline.job.watch import Watch
from pipeline.records import DEAD
from pipeline.storage.commit.counts import Counts, count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard, shard_prefix
from pipeline.storage.commit.window import commit_shard
from pipeline.telemetry.progress import JobProgress
from tests.stages import tiny_pools
from tests.storage import memory_url


def commit_dead(log: MarkerStore, number: int, rows: list[int], kind: str = "EmptyLine") -> None:
    letters = [{"id": str(r), "stage": "read", "error_type": kind, "message": "", "record": ""} for r in rows]
    dead = pa.Table.from_pylist(letters, schema=DEAD)
    none = np.empty(0, np.int64)
    name = f"{shard_prefix(0)}a-{number:06d}"
    commit_shard(log, Shard(name, None, None, none, np.array(rows), count_rows(pa.table({}), dead)), pa.table({}), dead)


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


def test_each_marker_is_counted_once() -> None:
    log = MarkerStore(memory_url())
    seen = Watch(log, 0, Counts(dead=1), ErrorBudget(1.0, None, 100), print)
    commit_dead(log, 0, [0, 1])
    assert (seen.look().dead, seen.look().dead) == (3, 3)
    commit_dead(log, 1, [2])
    assert seen.look().dead == 4


def test_rows_that_a_late_writer_answers_again_are_not_counted_twice() -> None:
    """Else two looks at a window that nobody has cut yet would spend the budget on letters that there are once."""
    log = MarkerStore(memory_url())
    seen = Watch(log, 0, Counts(), ErrorBudget(1.0, None, 100), print)
    commit_dead(log, 0, [0, 1])
    commit_dead(log, 1, [1, 2])
    assert (seen.look().dead, log.counts(0).dead) == (2, 2)
    commit_dead(log, 2, [3])
    assert (seen.look().dead, log.counts(0).dead) == (3, 3)


def test_a_spent_budget_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "SECONDS", 0.02)
    log, told = MarkerStore(memory_url()), list[StopReason]()
    with Watch(log, 0, Counts(), ErrorBudget(1.0, 2, 100), told.append):
        commit_dead(log, 0, [0, 1])
        time.sleep(0.1)
        assert told == []
        commit_dead(log, 1, [2], "InvalidJson")
        time.sleep(0.3)
    assert told == [StopReason(StopKind.BUDGET, "3 dead letters, over errors.max=2: 2 EmptyLine, 1 InvalidJson")]


def test_counts_are_told_after_each_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "SECONDS", 0.02)
    log, told = MarkerStore(memory_url()), list[int]()
    commit_dead(log, 0, [0, 1])
    budget = ErrorBudget(1.0, None, 100)
    with Watch(log, 0, Counts(dead=5), budget, print, on_counts=lambda counts: told.append(counts.dead)):
        while 7 not in told:
            time.sleep(0.01)
        commit_dead(log, 1, [2])
        while 8 not in told:
            time.sleep(0.01)
    assert told == sorted(told)
    assert set(told) == {7, 8}


@pytest.mark.long
def test_what_a_window_waits_for_is_looked_for_when_nothing_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "SECONDS", 0.02)
    monkeypatch.setattr(watch_module, "STALL_SECONDS", 0.3)
    log, looked = MarkerStore(memory_url()), list[float]()
    budget = ErrorBudget(1.0, None, 100)
    with Watch(log, 0, Counts(), budget, print, on_stall=lambda: looked.append(time.monotonic())):
        while len(looked) < 2:
            time.sleep(0.01)
    assert looked[1] - looked[0] > 0.3


def test_a_node_that_is_gone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    nodes: list[dict[str, Any]] = [{"Resources": {"CPU": 4.0}}]
    monkeypatch.setattr(windows_module, "alive_nodes", lambda: nodes)
    job = cast(Any, SimpleNamespace(log=said.append))
    windows = Windows(job, [], ErrorBudget(1.0, None, 100), StopSwitch(), JobProgress())
    pools = tiny_pools(generate=StageResources(0.25, gpus=1.0))
    windows._log_shortage(cast(Any, SimpleNamespace(window=2, pools=pools)))
    assert len(said) == 1
    assert said[0].startswith("window 3: nothing was committed for 300 s; cluster: no node has what the generate stage")
    nodes.append({"Resources": {"CPU": 4.0, "GPU": 1.0}})
    windows._log_shortage(cast(Any, SimpleNamespace(window=2, pools=pools)))
    assert len(said) == 1


def test_a_store_that_fails_as_the_next_window_begins_does_not_end_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "SECONDS", 0.02)
    log, told, begun = MarkerStore(memory_url()), list[StopReason](), list[int]()

    def begin() -> None:
        begun.append(1)
        if len(begun) == 1:
            raise OSError("a listing failed")

    with Watch(log, 0, Counts(), ErrorBudget(1.0, 2, 100), told.append, on_first_shard=begin):
        commit_dead(log, 0, [0, 1])
        while len(begun) < 2:
            time.sleep(0.01)
        commit_dead(log, 1, [2])
        while not told:
            time.sleep(0.01)
    assert len(begun) == 2


@pytest.mark.long
def test_the_next_window_is_routed_once_the_engines_of_this_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, its routing would take CPUs that engines need to start and to be fed."""
    log, routed = MarkerStore(memory_url()), list[int]()

    class Job:
        settings = SimpleNamespace(shard_records=1)

        def __init__(self) -> None:
            self.markers = log

        def missing(self, run: Any) -> np.ndarray:
            return np.arange(3)

        def run(self, run: Any, ahead: Any) -> tuple[int, Counts]:
            if run.window == 0:
                time.sleep(0.2)
                assert routed == []
                commit_dead(log, 0, [0])
                while not routed:
                    time.sleep(0.01)
            return 0, Counts()

    monkeypatch.setattr(watch_module, "SECONDS", 0.02)
    monkeypatch.setattr(windows_module, "PrefetchedWindow", lambda run, missing, records: routed.append(run.window))
    runs = [SimpleNamespace(window=window, incidents=SimpleNamespace(store_refusals=list)) for window in range(2)]
    windows = Windows(cast(Any, Job()), cast(Any, runs), ErrorBudget(1.0, None, 100), StopSwitch(), JobProgress())
    assert windows.run(Counts()) == 0
    assert routed == [1]


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
