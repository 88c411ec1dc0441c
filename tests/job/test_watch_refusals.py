"""The watch over a window stops its job when the store refused something for good."""

import threading

import pytest

from pipeline.job import watch as watch_module
from pipeline.job.error_budget import ErrorBudget
from pipeline.job.watch import Watch
from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.log import CommitLog
from tests.storage import memory_url

REFUSED = "commit: StoreError: OSError: No space left on device"


def test_what_the_store_refused_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "SECONDS", 0.02)
    told, over, asked = list[str](), threading.Event(), list[list[str]]()

    def refused() -> list[str]:
        asked.append([] if len(asked) < 3 else [REFUSED, "another"])
        return asked[-1]

    def stop(reason: str) -> None:
        told.append(reason)
        over.set()

    with Watch(CommitLog(memory_url()), 0, Counts(), ErrorBudget(1.0, None, 100), stop, refused=refused):
        assert over.wait(20)
    assert told == [REFUSED]
    assert asked == [[], [], [], [REFUSED, "another"]]
