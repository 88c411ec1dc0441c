"""Progress lines."""

import pytest

from pipeline.evaluation import progress
from pipeline.evaluation.progress import Progress


def test_the_time_left_goes_by_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    said: list[str] = []
    line = Progress("answers", 40, 100.0, said.append)
    for _ in range(20):  # half of the items, a fifth of the work
        now[0] += 3
        line.step(1.0)
    assert said[0] == "answers 4/40  0.3/s"  # too early to tell
    assert said[-1] == "answers 20/40  0.3/s  4 min 00 s left"
    for _ in range(20):
        now[0] += 300
        line.step(4.0)
    assert said[-1] == "answers 40/40  0.0/s  1 h 41 min in all"
