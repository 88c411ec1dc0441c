"""Finish windows while the stream runs: merge their files and write their markers, in Ray tasks."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayTaskError

from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import WindowFiles
from pipeline.storage.commit.window import finish_window
from pipeline.storage.input.plan import InputPlan
from pipeline.telemetry.logs import log_event

_RETRIES = 3  # of a task whose process died


class WindowFinisher:
    """Finishes windows whose rows are all committed; ``log`` takes a line for each. ``ended``: finished windows."""

    def __init__(self, markers: MarkerStore, plan: InputPlan, file_bytes: int, log: Callable[[str], None]) -> None:
        self.markers, self.plan, self.file_bytes, self.log = markers, plan, file_bytes, log
        self.ended: set[int] = set()
        self._window_of: dict[Any, int] = {}  # by the reference of its task's result

    def start(self, window: int) -> None:
        """Start to finish a window, in a task without a CPU of its own: the stages leave none."""
        task = ray.remote(_finish).options(num_cpus=0, max_retries=_RETRIES, scheduling_strategy="SPREAD")
        size = self.plan.window_size(window)
        self._window_of[task.remote(self.markers, window, size, self.file_bytes)] = window
        done, _ = ray.wait(list(self._window_of), timeout=0)
        self._collect(done)

    def wait(self) -> None:
        """Wait until all windows are finished that were started; raises the error of a task that failed."""
        self._collect(list(self._window_of))

    def _collect(self, done: list[Any]) -> None:
        for ref in done:
            window = self._window_of.pop(ref)
            try:
                files = ray.get(ref)
            except RayTaskError as error:  # of the store: no loss of the cluster, which a pass would make good
                raise error.cause from None
            if files is not None:
                self.ended.add(window)
                self._log(window, files)

    def _log(self, window: int, files: WindowFiles) -> None:
        counts = files.counts
        self.log(f"window {window + 1}/{self.plan.windows}: {counts.data} committed, {counts.dead} dead")
        log_event("window finished", run=self.markers.run, window=window, data=counts.data, dead=counts.dead)


def _finish(markers: MarkerStore, window: int, rows: int, file_bytes: int) -> WindowFiles | None:
    """Finish a window; None if its shards lack rows, since two of them may hold the same one."""
    try:
        return finish_window(markers, window, rows, file_bytes)
    except FileNotFoundError:
        return None
