"""The views of progress: what each prints."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from jobs import _progress
from jobs._generation import last_assistant_lines
from jobs._progress import JsonLines, Lines, LiveView, View, clock, line_of, view_of
from pipeline.conversations import PromptSettings
from pipeline.storage.commit.counts import Counts
from pipeline.telemetry.progress import Snapshot

TALLY = Counts(data=90, dead=10, completion_tokens=700, fallback=9, mixtures={"red:1.0": 60, "base": 9, "cold:1.0": 21})
NOW = Snapshot("generating", 2, 3, 400, 0, TALLY, 65.0, 2.0, 14.0)


def test_a_line_has_all_that_matters() -> None:
    assert line_of(NOW) == (
        "01:05  windows 2/3  generating  100/400  records/s 2.0  tokens/s 14.0  dead 10  fallback 10.0%"
        "  02:30 left  most red:1.0 (60)"
    )
    assert clock(3723) == "1:02:03"


def test_lines_come_every_ten_seconds_and_at_each_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    view = Lines()
    for second in range(25):
        now[0] = 1000.0 + second
        view.update(NOW)
    assert len(capsys.readouterr().out.splitlines()) == 3
    view.update(Snapshot("routing", 3, 3, 400, 0, TALLY, 90.0))
    assert "windows 3/3  routing  100/400  records/s -" in capsys.readouterr().out


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    view = JsonLines()
    view.log("something")
    view.update(NOW)
    view.result(["for people"], {"ok": True})
    message, progress, result = map(json.loads, capsys.readouterr().out.splitlines())
    assert (message["event"], message["message"]) == ("message", "something")
    assert progress["event"] == "progress"
    assert (progress["done"], progress["eta_seconds"], progress["fallback_share"]) == (100, 150.0, 0.1)
    assert list(progress["top_mixtures"]) == ["red:1.0", "cold:1.0", "base"]
    assert result["ok"] is True


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with View() as view:
        view.log("something")
        view.update(NOW)
        view.result(["a"], {})
    assert capsys.readouterr().out == ""


def test_the_live_view_shows_counts_rates_and_mixtures() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120, height=20, color_system=None)
    with LiveView(console) as view:
        view.log("104 records in 1 file(s), [1] window(s)")
        view.update(NOW)
        view._live.refresh()
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("[1] window(s)", "windows 2/3", "generating", "100 of 400", "02:", " left", "10.0%", "60  red:1.0"):
        assert text in shown


def test_auto_is_lines_where_there_is_no_terminal() -> None:
    assert isinstance(view_of("auto"), Lines)
    assert type(view_of("quiet")) is View


@pytest.mark.parametrize(
    ("policy", "done"), [("continue", "continued"), ("drop", "left out, and what is before it answered")]
)
def test_the_summary_says_what_became_of_last_turns(policy: Any, done: str) -> None:
    settings = PromptSettings(last_assistant=policy)
    assert last_assistant_lines(0, settings) == []
    [line] = last_assistant_lines(2, settings)
    assert line == f"assistant  2 ended with a turn of the assistant, {done} (model.last_assistant)"
