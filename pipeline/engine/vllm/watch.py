"""Notices that vLLM has requests and ends no pass."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.engine.serving.watchdog import watch_passes


class PassWatch:
    """Calls ``on_hang`` once where requests wait (`watching`) and no pass has ended for ``seconds``.

    It is called in a thread of its own, after the stacks of all threads went to stderr.
    """

    def __init__(self, seconds: float, on_hang: Callable[[], None]) -> None:
        self._watched = 0
        self._lock = threading.Lock()
        self._last = time.monotonic()
        self.last: Any = None
        """Stats of the last pass, as vLLM's scheduler gives them."""
        watch_passes(seconds, self._since, on_hang, "vLLM ended no pass")

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

    def _since(self) -> float:
        return self._last if self._watched else time.monotonic()
