"""Routing the next window while this one generates: after the first window, engines do not wait for the shuffle."""

import threading
from typing import Any

import numpy as np

from pipeline.stages.dataset import WindowRun


class RoutedAhead:
    """One window, routed and shuffled in a thread of its own, and then held in Ray's object store.

    ``missing``: rows that have no answer yet. Only one window is held beside that in work, so memory stays bounded.
    """

    def __init__(self, run: WindowRun, missing: np.ndarray, shard_records: int) -> None:
        self.window = run.window
        self._run, self._shard_records = run, shard_records
        self._found: Any = None
        # The thread gets the rows: they are not kept once it has ended.
        self._thread = threading.Thread(target=self._route, args=(run.some(missing),), daemon=True, name="route ahead")
        self._thread.start()

    def take(self) -> Any:
        """Wait for the dataset; None where routing failed as a whole: it is then done again with the window."""
        self._thread.join()
        return self._found

    def _route(self, rows: np.ndarray | None) -> None:
        try:
            with self._run.incidents.telling("route ahead"):
                self._found = self._run.routed(rows, self._shard_records).materialize()
        except Exception:  # noted, and done again with the window; or the job has ended meanwhile
            return
