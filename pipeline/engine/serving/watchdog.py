"""Detect engines that hang."""

import faulthandler
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


class Watchdog:
    """Detects a thread that works (`watching`) but has started no pass for ``seconds``: its last one hangs.

    `start_pass` must be called at the start of each pass, in its thread. ``on_hang``: see `watch_passes`.
    """

    def __init__(self, seconds: float, on_hang: Callable[[], None]) -> None:
        self._pass_starts: dict[int, float] = {}  # by thread
        watch_passes(
            seconds, lambda: min([*self._pass_starts.values()], default=time.monotonic()), on_hang, "no pass ended"
        )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the passes of the calling thread."""
        thread = threading.get_ident()
        self._pass_starts[thread] = time.monotonic()
        try:
            yield
        finally:
            del self._pass_starts[thread]

    def start_pass(self) -> None:
        """Record that the calling thread starts a pass."""
        thread = threading.get_ident()
        if thread in self._pass_starts:
            self._pass_starts[thread] = time.monotonic()


def watch_passes(
    seconds: float, pass_start: Callable[[], float], on_hang: Callable[[], None], description: str
) -> None:
    """Start a thread that calls ``on_hang`` once if a pass takes longer than ``seconds``.

    It writes all stacks to stderr first. ``on_hang`` should end the process: nothing else stops a thread.
    ``pass_start``: start of the current pass (`time.monotonic`), or now if none runs. ``description``: for the log.
    """

    def watch() -> None:
        while True:
            time.sleep(min(1.0, seconds / 4))
            if time.monotonic() - pass_start() > seconds:
                _log.error("engine: %s in %g s; the process ends, and is started again", description, seconds)
                faulthandler.dump_traceback()
                on_hang()
                return

    threading.Thread(target=watch, daemon=True, name="watchdog").start()
