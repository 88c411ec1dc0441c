"""Run the windows of a job one after another, and route the next window while one generates."""

import gc
from collections.abc import Sequence
from functools import partial
from itertools import islice

from pipeline.cluster.sizing import alive_nodes, shortages
from pipeline.heap import trim_heap
from pipeline.stages.dataset import WindowRun
from pipeline.storage.commit.counts import Counts
from pipeline.telemetry.progress import JobProgress

from .error_budget import ErrorBudget
from .prefetch import PrefetchedWindow
from .stop import StopKind, StoppedError, StopReason, StopSwitch
from .watch import STALL_SECONDS, Watch
from .window import WindowJob


class Windows:
    """Runs unfinished windows in order; stops with `StoppedError` over the error budget."""

    def __init__(
        self,
        window_job: WindowJob,
        runs: Sequence[WindowRun],
        budget: ErrorBudget,
        switch: StopSwitch,
        progress: JobProgress,
    ) -> None:
        self._window_job, self._runs, self._budget, self._switch = window_job, runs, budget, switch
        self._progress = progress
        self._prefetched: PrefetchedWindow | None = None

    def run(self, counted: Counts) -> int:
        """Answer all windows; return the number of rows without an answer. ``counted``: counts of finished windows."""
        incomplete = 0
        for index, run in enumerate(self._runs):
            if problem := self._budget.problem(counted):
                raise StoppedError(StopReason(StopKind.BUDGET, problem))
            prefetched, self._prefetched = self._prefetched, None
            self._progress.set_stage("routing", run.window)
            watch = Watch(
                self._window_job.markers,
                run.window,
                counted,
                self._budget,
                self._switch.stop,
                on_first_shard=partial(self._prefetch, index + 1),
                on_counts=self._progress.update,
                store_refusals=run.incidents.store_refusals,
                on_stall=partial(self._log_shortage, run),
            )
            with watch:
                missing, counts = self._window_job.run(run, prefetched)
            incomplete, counted = incomplete + missing, counted + counts
            self._progress.update(counted, "committed")
            if run is not self._runs[-1]:
                gc.collect()  # Ray Data's executors are reference cycles, which hold the window's blocks
                trim_heap()
        return incomplete

    def _log_shortage(self, run: WindowRun) -> None:
        """Log what the cluster lacks: Ray waits silently for a node that is gone, because it may come back."""
        for problem in islice(shortages(run.pools, alive_nodes()), 1):
            log = self._window_job.log
            log(f"window {run.window + 1}: nothing was committed for {STALL_SECONDS:.0f} s; cluster: {problem}")

    def _prefetch(self, index: int) -> None:
        """Route the next window once the current one commits; earlier, it would slow down the current one's routing."""
        self._progress.set_stage("generating")
        if index < len(self._runs):
            run = self._runs[index]
            missing = self._window_job.missing(run)
            if len(missing):
                self._prefetched = PrefetchedWindow(run, missing, self._window_job.settings.shard_records)
