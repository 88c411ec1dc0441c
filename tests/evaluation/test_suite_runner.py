"""Progress lines."""

import pytest

from pipeline.evaluation import suite_runner
from pipeline.evaluation.suite_runner import ProgressLines


def test_the_time_left_goes_by_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(suite_runner.time, "monotonic", lambda: now[0])
    lines: list[str] = []
    progress = ProgressLines("answers", 40, 100.0, lines.append)
    for _ in range(20):  # half of the items, a fifth of the work
        now[0] += 3
        progress.step(1.0)
    assert lines[0] == "answers 4/40  0.3/s"  # too early to tell
    assert lines[-1] == "answers 20/40  0.3/s  4 min 00 s left"
    for _ in range(20):
        now[0] += 300
        progress.step(4.0)
    assert lines[-1] == "answers 40/40  0.0/s  1 h 41 min in all"
