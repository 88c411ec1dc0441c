"""Say once how fast the engines of a job answer, and how many routing actors that takes."""

import math
import time
from collections.abc import Callable

from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.logs import log_event

SECONDS = 60.0  # after the first shard


class RoutingReport:
    """Counts the rows that are committed; after `SECONDS` it logs their speed beside that of routing, once."""

    def __init__(self, incidents: Incidents, log: Callable[[str], None]) -> None:
        self._incidents, self._log = incidents, log
        self._start: float | None = None
        self._rows, self._is_logged = 0, False

    def committed(self, rows: int) -> None:
        """Note that a shard was committed. The rows of the first one were answered before the time starts."""
        now = time.monotonic()
        if self._start is None:
            self._start = now
            return
        self._rows += rows
        if not self._is_logged and now - self._start >= SECONDS:
            self._is_logged = True
            self._report(self._rows / (now - self._start))

    def _report(self, answered: float) -> None:
        routed = self._incidents.records_per_second("route")
        if not routed:
            return
        running = self._incidents.stage_seconds().get("route start", (0.0, 0))[1]
        needed = max(1, math.ceil(answered / routed))
        self._log(
            f"routing    engines answered {answered:,.0f} records/s in the first {SECONDS:.0f} s, a routing actor gives"
            f" {routed:,.0f}: {needed} needed, {running} started"
        )
        log_event(
            "routing measured", answered=round(answered, 1), routed=round(routed, 1), needed=needed, started=running
        )
