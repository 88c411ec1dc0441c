"""The watch over a window stops its job when the store refused something for good."""

import threading

import pytest

from pipeline.job import watch as watch_module
from pipeline.job.error_budget import ErrorBudget
from pipeline.job.stop import StopKind, StopReason
from pipeline.job.watch import Watch
from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.telemetry.incident_actor import Incident
from tests.storage import memory_url

REFUSED = Incident("commit", "run", "StoreError", "OSError: No space left on device")
ANOTHER = Incident("commit", "run", "StoreError", "another")


def test_what_the_store_refused_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "SECONDS", 0.02)
    told, over, asked = list[StopReason](), threading.Event(), list[list[Incident]]()

    def refused() -> list[Incident]:
        asked.append([] if len(asked) < 3 else [REFUSED, ANOTHER])
        return asked[-1]

    def stop(reason: StopReason) -> None:
        told.append(reason)
        over.set()

    budget = ErrorBudget(1.0, None, 100)
    with Watch(MarkerStore(memory_url()), 0, Counts(), budget, stop, store_refusals=refused):
        assert over.wait(20)
    assert told == [StopReason(StopKind.STORE, "commit: StoreError: OSError: No space left on device")]
    assert asked == [[], [], [], [REFUSED, ANOTHER]]
