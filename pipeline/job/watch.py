"""Watch a pass in which nothing is committed: say what the cluster lacks, or stop the job if everything fails."""

import threading
import time
from collections.abc import Callable

from pipeline.telemetry.incidents import Incidents

from .stop import StopKind, StopReason

SECONDS = 10.0  # between two looks at the incidents
STALL_SECONDS = 300.0  # without a shard
_MAX_FAILURES = 16  # errors and deaths since the last shard, and more for each engine, before the job stops
_PER_ENGINE = 4


class Watch:
    """Looks at the incidents of a pass in a thread while it runs; the pass calls `committed` for each shard.

    ``engines``: their number, 0 not to stop the job. ``stop``: called once with the reason. ``on_stall``: called each
    time that no shard was committed for `STALL_SECONDS`.
    """

    def __init__(
        self, incidents: Incidents, engines: int, stop: Callable[[StopReason], None], on_stall: Callable[[], None]
    ) -> None:
        self._incidents, self._engines, self._stop, self._on_stall = incidents, engines, stop, on_stall
        self._last, self._is_committed = time.monotonic(), False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def committed(self) -> None:
        """Note that a shard was committed."""
        self._last, self._is_committed = time.monotonic(), True

    def _run(self) -> None:
        failures_before = self._incidents.failures()
        while not self._end.wait(SECONDS):
            failures = self._incidents.failures()
            if self._is_committed:
                failures_before, self._is_committed = failures, False
            if self._engines and failures - failures_before > _MAX_FAILURES + _PER_ENGINE * self._engines:
                seen = self._incidents.counts()
                reason = str(seen[0][0]) if seen else "generating actors died (see the logs of Ray)"
                self._stop(StopReason(StopKind.FAILING, f"no shard succeeds any more: {reason}"))
                return
            if time.monotonic() - self._last > STALL_SECONDS:
                self._on_stall()
                self._last = time.monotonic()
