"""The line that says what engines answer and what that takes of routing."""

from types import SimpleNamespace

import pytest

from pipeline.job import routing_report as module
from pipeline.job.routing_report import RoutingReport
from pipeline.telemetry.incidents import Incidents
from tests.telemetry import local_incidents


@pytest.fixture
def incidents(monkeypatch: pytest.MonkeyPatch) -> Incidents:
    """Two routing actors that routed 5,000 records in ten seconds."""
    found = local_incidents(monkeypatch)
    for _ in range(2):
        found._actor.counter.add_call("route start", 3.0, 0)
        found._actor.counter.add_call("route", 5.0, 2500)
    return found


def logged(incidents: Incidents, shards: list[tuple[float, int]], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines after shards, each a time in seconds and its rows."""
    now, lines = [0.0], list[str]()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    report = RoutingReport(incidents, lines.append)
    for now[0], rows in shards:
        report.committed(rows)
    return lines


def test_a_minute_after_the_first_shard_the_speeds_are_logged_once(
    incidents: Incidents, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [(100.0, 999), *[(100.0 + 10 * i, 12_000) for i in range(1, 9)]]
    assert logged(incidents, shards, monkeypatch) == [
        "routing    engines answered 1,200 records/s in the first 60 s, a routing actor gives 500: 3 needed, 2 started"
    ]
    assert logged(incidents, shards[:6], monkeypatch) == [], "not before the minute is over"


def test_nothing_is_logged_without_a_speed_of_routing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert logged(local_incidents(monkeypatch), [(0.0, 1), (60.0, 1)], monkeypatch) == []
