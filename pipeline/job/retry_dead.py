"""Dead letters of a finished run, tried again."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace

import numpy as np

from pipeline.cluster.resources import Pools
from pipeline.errors import UserError
from pipeline.settings import JobSettings
from pipeline.stages.dataset import WindowRun
from pipeline.stages.generate import GenerateRecords
from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.orphans import sweep_unnamed
from pipeline.storage.commit.retry import RetryFilter, amend_window, rows_to_retry
from pipeline.storage.output.dataset_card import CARD
from pipeline.storage.output.run import RUN
from pipeline.storage.store.redact import masked
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.progress import Listener

from .error_budget import ErrorBudget
from .generate import GenerateJob
from .preflight import Prepared
from .stop import StoppedError, StopSwitch, outages_stop
from .watch import Watch
from .window import WindowJob


@dataclass(frozen=True)
class RetryResult:
    """How many dead letters were tried again, and how many of those records are answered now."""

    retried: int
    answered: int
    dead: int  # of the run, now


class RetryJob(GenerateJob):
    """Answers the dead records of a finished run again, with the settings that it was made with.

    A window shows its old dead letters until all of its own are tried, or the job is stopped; then a new marker takes
    the place of the old one. Killed before, it leaves the window as it was.
    """

    def __init__(
        self,
        settings: JobSettings,
        wanted: RetryFilter,
        say: Callable[[str], None] = print,
        *,
        generator: type = GenerateRecords,
        listener: Listener = lambda snapshot: None,
    ) -> None:
        super().__init__(settings, say, generator=generator, listener=listener)
        self._wanted = wanted

    def retry(self, start_pools: Callable[[], Pools]) -> RetryResult:
        """Do it. `UserError` where the run is not finished; Ray is started only where there is something to do."""
        prepared = self.prepare()
        with outages_stop():
            return self._retry(prepared, start_pools)

    def _retry(self, prepared: Prepared, start_pools: Callable[[], Pools]) -> RetryResult:
        earlier = self.folder.read_json(RUN) or {}
        self.log.run = earlier.get("run")
        if self._unfinished(prepared.plan) or earlier.get("state") != "finished":
            raise UserError(
                f"run: {masked(self.settings.output)} is not finished; finish it first, with the command that began it"
            )
        switch = StopSwitch()
        with self._leased(switch):
            if (self._earlier(prepared) or {}).get("run") != self.log.run:
                raise UserError(f"run: {masked(self.settings.output)} was begun anew meanwhile; give the command again")
            self.settings = replace(self.settings, run=self.log.run or "")
            self.log.sweep_finished(fence=True)
            self.log.begin_session()
            rows, before = self._rows(prepared), self._committed(prepared.plan)
            # From the first try to the end, files are in the folders that no marker names: without the card the end of
            # an earlier command is missing.
            ended = self.folder.read(CARD) is not None
            if rows:
                self.progress.stage("starting Ray")
                pools = start_pools()
                self.folder.remove(CARD)
                try:
                    with switch, outages_stop():
                        self._retry_all(prepared, pools, rows, switch)
                except (KeyboardInterrupt, StoppedError):
                    with suppress(Exception, StoppedError):
                        self._done(prepared, rows, before)
                    raise
            result = self._done(prepared, rows, before)
            if rows or not ended:
                sweep_unnamed(self.log, self._check_lease, fence=True)
            return result

    def _rows(self, prepared: Prepared) -> dict[int, np.ndarray]:
        """By window, the places in it of the rows to be tried again."""
        size, finished = prepared.plan.window_rows, self.log.finished()
        found = zip(finished, self.log.marked(finished.values()), strict=True)
        retried = ((window, rows_to_retry(self.log, files, self._wanted) - window * size) for window, files in found)
        return {window: rows for window, rows in retried if len(rows)}

    def _retry_all(self, prepared: Prepared, pools: Pools, rows: dict[int, np.ndarray], switch: StopSwitch) -> None:
        plan, shape = prepared.plan, self.shape(prepared)
        self._incidents = Incidents.listening()
        job = WindowJob(self.settings, self.log, self.say, switch.check)
        records, counted = sum(map(len, rows.values())), Counts()
        no_budget = ErrorBudget(1.0, None, records)  # all of them may become dead letters again
        self.progress.begin(records, plan.windows, counted)
        for window, retried in rows.items():
            run = self._window_run(prepared, pools, shape, window, retried)
            marker, _ = self.log.newest(window)
            self.progress.stage("retrying", window)
            counting, refused = self.progress.committed, self._incidents.refusals
            with Watch(self.log, window, counted, no_budget, switch.stop, counting=counting, refused=refused) as watch:
                try:
                    left = job.rounds(run)
                except (KeyboardInterrupt, StoppedError):
                    with suppress(Exception, StoppedError):  # the store may be what stopped it, or another driver
                        self._amend(run, marker, retried)  # with the answers that there are
                    raise
            counted = watch.look()
            self.progress.committed(counted, "committed")
            self._amend(run, marker, retried)
            self.say(f"window {window + 1}/{plan.windows}: {len(retried) - len(left)} of {len(retried)} tried again")

    def _amend(self, run: WindowRun, marker: str, retried: np.ndarray) -> None:
        self._check_lease()
        amend_window(self.log, run.window, marker, run.window * run.plan.window_rows, retried)

    def _done(self, prepared: Prepared, rows: dict[int, np.ndarray], before: Counts) -> RetryResult:
        """Counts; `run.json` gets those of the run as it is now, where a killed command left others too."""
        run = self.folder.read_json(RUN)
        assert run is not None  # it is finished
        total = self._committed(prepared.plan)
        found = RetryResult(sum(map(len, rows.values())), total.data - before.data, total.dead)
        if rows:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            run.setdefault("retries", []).append({"at": at, "retried": found.retried, "answered": found.answered})
        if rows or any(run["counts"].get(name) != value for name, value in asdict(total).items()):
            run["counts"] |= asdict(total)
            self._check_lease()
            self.folder.write_json(RUN, run)
        return found
