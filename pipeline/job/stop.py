"""Stopping a job in mid-run: on SIGTERM, over the error budget, or when another driver took its output over."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from pipeline.storage.store.objects import StoreError, is_transient
from pipeline.storage.store.redact import masked, one_line

SIGTERM = "SIGTERM"  # the reason of a stop from outside


class StoppedError(BaseException):
    """The job was told to stop, for the reason given. Like `KeyboardInterrupt` no error that retries may swallow."""


@contextmanager
def outages_stop() -> Iterator[None]:
    """What a store refuses for good, does not do after all tries, or has lost becomes a `StoppedError`."""
    try:
        yield
    except StoreError as error:
        raise StoppedError(f"commit: {one_line(error)}") from error
    except FileNotFoundError as error:  # of what was listed or written a moment ago
        raise StoppedError(f"store: gone since it was listed: {masked(str(error.filename or error))}") from error
    except Exception as error:
        if not (is_transient(error) or isinstance(error, OSError)):  # of a disk that is full, rights that are missing
            raise
        raise StoppedError(f"output: {type(error).__name__}: {one_line(error)}") from error


class StopSwitch:
    """While it is entered, `stop` ends the work of the main thread with a `StoppedError`, and so does SIGTERM.

    Ray waits in the main thread and looks at nothing else, so a thread that wants to stop it must send a signal. Where
    the job runs in another thread (a notebook's, a server's), it stops at the next `check`.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self._before: Any = None
        self._in_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopSwitch":
        if self._in_main:
            self._before = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._in_main:
            signal.signal(signal.SIGTERM, self._before)

    def stop(self, reason: str) -> None:
        """Ask for the end, from any thread."""
        self.reason = self.reason or reason
        if self._in_main:
            os.kill(os.getpid(), signal.SIGTERM)

    def check(self) -> None:
        """`StoppedError` if somebody asked for the end."""
        if self.reason:
            raise StoppedError(self.reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or SIGTERM
        self.check()
