"""Stop a running job in order: on SIGTERM, over the error budget, without the lease, or when the store fails."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import FrameType
from typing import Any

from pipeline.storage.store.objects import StoreError, is_transient
from pipeline.storage.store.redact import masked, masked_error


class StopKind(Enum):
    """The causes for which a job stops before all its records are answered."""

    SIGNAL = "signal"
    BUDGET = "budget"
    LEASE_LOST = "lease lost"
    STORE = "store"
    INPUT_CHANGED = "input changed"
    START_FAILED = "start failed"
    FAILING = "failing"


@dataclass(frozen=True)
class StopReason:
    """Why a job stops; ``message`` is one line for people."""

    kind: StopKind
    message: str


SIGTERM = StopReason(StopKind.SIGNAL, "SIGTERM")


class StoppedError(BaseException):
    """The job stops for a reason. Like `KeyboardInterrupt` it is no `Exception`, so that no retry swallows it."""

    def __init__(self, reason: StopReason) -> None:
        super().__init__(reason.message)
        self.reason = reason


@contextmanager
def stop_on_store_errors() -> Iterator[None]:
    """Raise `StoppedError` instead of errors of the store: refused, lost, or failed after all tries."""
    try:
        yield
    except StoreError as error:
        raise _store_failed(f"commit: {masked_error(error)}") from error
    except FileNotFoundError as error:  # of what was listed or written a moment ago
        raise _store_failed(f"store: gone since it was listed: {masked(str(error.filename or error))}") from error
    except Exception as error:
        if not (is_transient(error) or isinstance(error, OSError)):  # of a disk that is full, rights that are missing
            raise
        raise _store_failed(f"output: {type(error).__name__}: {masked_error(error)}") from error


def _store_failed(message: str) -> StoppedError:
    return StoppedError(StopReason(StopKind.STORE, message))


class StopSwitch:
    """While it is entered, `stop` ends the work of the main thread with `StoppedError`, and so does SIGTERM.

    Ray blocks the main thread, so another thread must send it a signal. If the job runs in another thread (of a
    notebook, of a server), it stops at the next `check`.
    """

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        self._previous_handler: Any = None
        self._in_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> "StopSwitch":
        if self._in_main:
            self._previous_handler = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        if self._in_main:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def stop(self, reason: StopReason) -> None:
        """Ask the job to stop, from any thread; the first reason counts."""
        self.reason = self.reason or reason
        if self._in_main:
            os.kill(os.getpid(), signal.SIGTERM)

    def check(self) -> None:
        """Raise `StoppedError` if the job was asked to stop."""
        if self.reason:
            raise StoppedError(self.reason)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or SIGTERM
        self.check()
