"""Detect that vLLM hangs: requests wait and no forward pass finishes."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.engine.serving.watchdog import watch_passes


class PassWatch:
    """Calls ``on_hang`` once if requests wait (`watching`) and no forward pass has finished for ``seconds``.

    ``on_hang`` runs in its own thread, after the stacks of all threads were written to stderr. ``last_stats``: the
    scheduler's stats of the last pass.
    """

    def __init__(self, seconds: float, on_hang: Callable[[], None]) -> None:
        self._waiting = 0
        self._lock = threading.Lock()
        self._last_pass = time.monotonic()
        self.last_stats: Any = None
        watch_passes(
            seconds,
            lambda: self._last_pass if self._waiting else time.monotonic(),
            on_hang,
            "vLLM finished no forward pass",
        )

    def record_pass(self, stats: Any) -> None:
        """Record that a pass has finished."""
        self._last_pass = time.monotonic()
        self.last_stats = stats or self.last_stats

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while requests wait, in any number of threads."""
        with self._lock:
            if not self._waiting:
                self._last_pass = time.monotonic()
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
