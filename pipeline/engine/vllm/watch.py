"""Notices that vLLM has requests and ends no pass."""

import faulthandler
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_log = logging.getLogger(__name__)


class PassWatch:
    """Calls ``on_hang`` once where requests wait (`watching`) and no pass has ended for ``seconds``.

    It is called in a thread of its own, after the stacks of all threads went to stderr.
    """

    def __init__(self, seconds: float, on_hang: Callable[[], None]) -> None:
        self._seconds, self._on_hang = seconds, on_hang
        self._watched = 0
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self.last: Any = None
        """Stats of the last pass, as vLLM's scheduler gives them."""
        threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    def passed(self, stats: Any) -> None:
        """A pass has ended."""
        self._last = time.monotonic()
        self.last = stats or self.last

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Requests wait as long as this lasts; in any number of threads."""
        with self._lock:
            if not self._watched:
                self._last = time.monotonic()
            self._watched += 1
        try:
            yield
        finally:
            with self._lock:
                self._watched -= 1

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, self._seconds / 4))
            if self._watched and time.monotonic() - self._last > self._seconds:
                _log.error("engine: vLLM ended no pass in %g s; the process is ended, and started again", self._seconds)
                faulthandler.dump_traceback()
                self._on_hang()
                return
