"""Readers that open the output of a run while it is written, and read on after windows were finished."""

import threading
from types import TracebackType
from typing import Any

from benchmarks.chaos.kills import Progress
from pipeline.errors import UserError
from pipeline.storage import read_run

_SECONDS = 0.2  # between two looks at the output


class OpenReaders:
    """Opens the output each time that it has grown, in a thread, and reads a dataset once a further window is finished.

    Files of shards may go when all ``windows`` are finished, so a dataset that is read later than that does not count.
    ``is_lasting``: whether the store is never away. ``reads``: datasets that were read to their end; ``errors``: those
    that were not, or that hold a line twice.
    """

    def __init__(self, output: str, windows: int, is_lasting: bool) -> None:
        self.reads = 0
        self.errors: list[str] = []
        self._output, self._windows, self._is_lasting = output, windows, is_lasting
        self._progress = Progress(output)
        self._seen = (0, 0)
        self._open: list[tuple[int, Any]] = []  # finished windows when it was opened, and the dataset
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "OpenReaders":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(_SECONDS):
            try:
                self._look()
            except UserError:  # there is no run yet
                continue
            except Exception as error:
                # A store that is away may answer later. Lost files are no error once nothing is left to finish.
                is_lost = isinstance(error, FileNotFoundError)
                if (is_lost or self._is_lasting) and self._finished() < self._windows:
                    self.errors.append(f"{type(error).__name__}: {error}"[:300])

    def _look(self) -> None:
        files, windows = seen = self._progress.look()
        if files and seen != self._seen:
            self._open.append((windows, read_run(self._output)))
            self._seen = seen
        while self._open and self._open[0][0] < windows:
            _, dataset = self._open[0]
            try:
                lines = dataset.to_table(columns=["line"])["line"].to_pylist()
            except FileNotFoundError:
                del self._open[0]
                raise
            del self._open[0]
            self.reads += 1
            if len(set(lines)) < len(lines):
                self.errors.append(f"{len(lines) - len(set(lines))} lines twice")

    def _finished(self) -> int:
        try:
            return self._progress.look()[1]
        except Exception:  # the store is away
            return self._windows
