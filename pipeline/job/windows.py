"""The windows of a job one after another, the next one routed while one generates."""

import gc
from collections.abc import Sequence
from functools import partial
from itertools import islice

from pipeline.cluster.capacity import shortages
from pipeline.cluster.connect import living_nodes
from pipeline.engine.serving.heap import give_back_freed_memory
from pipeline.stages.dataset import WindowRun
from pipeline.storage.commit.counts import Counts
from pipeline.telemetry.progress import Progress

from .error_budget import ErrorBudget
from .prefetch import RoutedAhead
from .stop import StoppedError, StopSwitch
from .watch import STILL, Watch
from .window import WindowJob


class Windows:
    """Runs unfinished windows in order."""

    def __init__(
        self,
        job: WindowJob,
        runs: Sequence[WindowRun],
        budget: ErrorBudget,
        switch: StopSwitch,
        progress: Progress | None = None,
    ) -> None:
        self._job, self._runs, self._budget, self._switch = job, runs, budget, switch
        self._progress = progress or Progress()
        self._ahead: RoutedAhead | None = None

    def run(self, counted: Counts) -> int:
        """How many rows stay without an answer. ``counted``: of the finished windows; over the budget the job stops."""
        incomplete = 0
        for number, run in enumerate(self._runs):
            if self._budget.is_over(counted):
                raise StoppedError(self._budget.explain(counted))
            ahead, self._ahead = self._ahead, None
            self._progress.stage("routing", run.window)
            log, stop, refused = self._job.log, self._switch.stop, run.incidents.refusals
            begun, counting = partial(self._begun, number), self._progress.committed
            still = partial(self._say_shortage, run)
            with Watch(log, run.window, counted, self._budget, stop, begun, counting, refused, still):
                missing, counts = self._job.run(run, ahead)
            incomplete, counted = incomplete + missing, counted + counts
            self._progress.committed(counted, "committed")
            if run is not self._runs[-1]:
                gc.collect()  # Ray Data's executors are cycles, and hold what was of the window in Ray's store and here
                give_back_freed_memory()
        return incomplete

    def _say_shortage(self, run: WindowRun) -> None:
        """Ray waits without a word for a node that has gone: it may come back."""
        for problem in islice(shortages(run.pools, living_nodes()), 1):
            self._job.say(f"window {run.window + 1}: nothing was committed for {STILL:.0f} s; cluster: {problem}")

    def _begun(self, number: int) -> None:
        """The window commits: the next one is routed. Before, its own routing would be the slower for it."""
        self._progress.stage("generating")
        self._route(number + 1)

    def _route(self, number: int) -> None:
        if number < len(self._runs):
            run = self._runs[number]
            missing = self._job.missing(run)
            if len(missing):
                self._ahead = RoutedAhead(run, missing, self._job.settings.shard_records)
