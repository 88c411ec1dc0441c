"""The Grafana dashboard draws what the stages emit, and all of it."""

import json
import re

from pipeline.telemetry.metrics import COUNTERS, GAUGES
from tests.cluster.head import ROOT

DASHBOARD = ROOT / "docker" / "grafana" / "loraloom.json"


def dashboard_metrics() -> set[str]:
    """Names of our metrics in the dashboard's queries, as Prometheus has them."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    return {name for query in queries for name in re.findall(r"\bray_loraloom_\w+", query)}


def test_every_metric_that_is_emitted_is_drawn_and_no_other() -> None:
    emitted = {f"ray_{name}_total" for name in COUNTERS} | {f"ray_{name}" for name in GAUGES}
    assert dashboard_metrics() == emitted


def test_panels_have_their_own_places_and_ids() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "run"]
