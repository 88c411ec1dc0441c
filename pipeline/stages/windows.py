"""The windows of a job one after another, the next one routed while one generates."""

from collections.abc import Sequence
from functools import partial

from ..storage.shards import Tally
from .ahead import RoutedAhead
from .graph import WindowRun
from .stopping import StoppedError, StopSwitch
from .watch import ErrorBudget, Watch
from .window import WindowJob


class Windows:
    """Runs unfinished windows in order."""

    def __init__(self, job: WindowJob, runs: Sequence[WindowRun], budget: ErrorBudget, switch: StopSwitch) -> None:
        self._job, self._runs, self._budget, self._switch = job, runs, budget, switch
        self._ahead: RoutedAhead | None = None

    def run(self, counted: Tally) -> int:
        """How many rows stay without an answer. ``counted``: of the finished windows; over the budget the job stops."""
        incomplete = 0
        for number, run in enumerate(self._runs):
            if self._budget.is_over(counted):
                raise StoppedError(self._budget.explain(counted))
            ahead, self._ahead = self._ahead, None
            route_next = partial(self._route, number + 1)
            with Watch(
                self._job.log, run.window, counted, self._budget, self._switch.stop, route_next, run.incidents.refusals
            ):
                missing, tally = self._job.run(run, ahead)
            incomplete, counted = incomplete + missing, counted + tally
        return incomplete

    def _route(self, number: int) -> None:
        """Once a window commits: before, its own routing would be the slower for it."""
        if number < len(self._runs):
            run = self._runs[number]
            missing = self._job.missing(run)
            if len(missing):
                self._ahead = RoutedAhead(run, missing, self._job.settings.shard_records)
