"""Route the next window while one generates, so that engines do not wait for its shuffle."""

import threading
from typing import Any

import numpy as np

from pipeline.stages.dataset import WindowRun
from pipeline.telemetry.incident_actor import PREFETCH


class PrefetchedWindow:
    """One window, routed and shuffled in a thread of its own, then held in Ray's object store.

    ``missing``: its rows without an answer. At most one window is held beside the running one, so memory stays bounded.
    """

    def __init__(self, run: WindowRun, missing: np.ndarray, shard_records: int) -> None:
        self.window = run.window
        self._run, self._shard_records = run, shard_records
        self._dataset: Any = None
        # The rows are passed to the thread, not kept: they are freed when it ends.
        self._thread = threading.Thread(target=self._route, args=(run.some(missing),), daemon=True, name="prefetch")
        self._thread.start()

    def take(self) -> Any:
        """Wait for the dataset and return it; None if routing failed: it is then done again with the window."""
        self._thread.join()
        return self._dataset

    def _route(self, rows: np.ndarray | None) -> None:
        try:
            with self._run.incidents.recording("route", PREFETCH):
                self._dataset = self._run.routed(rows, self._shard_records).materialize()
        except Exception:  # recorded, and done again with the window; or the job has ended meanwhile
            return
