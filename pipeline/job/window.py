"""Answer the rows of one window: pass after pass over the rows without an answer, in smaller and smaller shards."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from ray.exceptions import RayError

from pipeline.records import DeadLetter
from pipeline.settings import JobSettings
from pipeline.stages.dataset import WindowRun
from pipeline.stages.output_schema import dead_letters
from pipeline.storage.commit.counts import Counts, count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard, finish_window
from pipeline.storage.input.plan import InputPlan
from pipeline.storage.input.read import read_split
from pipeline.storage.store.redact import masked_error
from pipeline.telemetry.logs import log_event

from .prefetch import PrefetchedWindow
from .stop import StopKind, StoppedError, StopReason

# Shard sizes of later rounds: a record that kills its actor is isolated in a shard, then among 20, then alone.
_SMALLER_SHARDS = (20, 1)
# The number of records of a window that are run one by one before they become dead letters: the first number, or the
# error budget up to the second one. If more are left, the cluster or the store is at fault.
_MAX_ALONE, _MAX_ALONE_IN_BUDGET = 32, 500


class WindowJob:
    """Gives every row of one window an answer or a dead letter.

    ``check_stop``: called before each pass; it may raise to stop the job. ``input_problem``: returns why no window can
    be finished, else an empty text. Methods raise `StoppedError` if the store refuses rows or actors cannot start.
    """

    def __init__(
        self,
        settings: JobSettings,
        markers: MarkerStore,
        log: Callable[[str], None],
        check_stop: Callable[[], None],
        input_problem: Callable[[], str] = str,
    ) -> None:
        self.settings, self.markers, self.log = settings, markers, log
        self._check_stop, self._input_problem = check_stop, input_problem

    def run(self, run: WindowRun, prefetched: PrefetchedWindow | None = None) -> tuple[int, Counts]:
        """Answer the rows and finish the window; return the number of rows without an answer, and the counts.

        ``prefetched``: the window's routed rows.
        """
        window, plan = run.window, run.plan
        size = plan.window_size(window)
        missing = self.rounds(run, prefetched)
        self._check_input()
        if len(missing) == size > 1:
            return size, Counts()  # nothing at all was answered: the records are not at fault
        if 0 < len(missing) <= max(_MAX_ALONE, min(_MAX_ALONE_IN_BUDGET, int(self.settings.error_budget * size))):
            failed = [row for row in missing.tolist() if self._fails_alone(run, row)]
            self._check_input()  # the records of a file that changed meanwhile are not at fault
            self._commit_dead(window, plan, failed)
            missing = self.missing(run)
        if len(missing):
            return len(missing), self.markers.counts(window)
        files = finish_window(self.markers, window, size, self.settings.file_bytes)
        counts = files.counts
        self.log(f"window {window + 1}/{plan.windows}: {counts.data} committed, {counts.dead} dead")
        log_event("window finished", run=self.settings.run, window=window, data=counts.data, dead=counts.dead)
        return 0, counts

    def _check_input(self) -> None:
        if problem := self._input_problem():
            raise StoppedError(StopReason(StopKind.INPUT_CHANGED, problem))

    def rounds(self, run: WindowRun, prefetched: PrefetchedWindow | None = None) -> np.ndarray:
        """Run all rows without an answer, then the remaining ones in smaller shards; return the rows left at the end.

        If a record kills its actor, the shards that waited for this actor are lost too; the next round runs them again.
        """
        missing = self.missing(run)
        shard_records = self.settings.shard_records
        for shard in [shard_records, *(n for n in _SMALLER_SHARDS if n < shard_records)]:
            if not len(missing):
                break
            self._run(run, missing, shard, prefetched.take() if prefetched else None)
            prefetched = None
            left = self.missing(run)
            if len(left):
                self.log(f"window {run.window + 1}: {len(left)} of {len(missing)} records without answer, retried")
            if len(left) == len(missing) > _MAX_ALONE * shard:
                break  # nothing at all was answered: the cluster or the store is at fault, not some records
            missing = left
        return missing

    def _run(self, run: WindowRun, missing: np.ndarray, shard_records: int, routed: Any = None) -> None:
        """Make one pass over the missing rows; rows that fail in it stay without an answer."""
        self._check_stop()
        failed_before = run.incidents.failed_starts()
        try:
            if routed is None:
                routed = run.routed(run.some(missing), shard_records)
            run.generate(routed, self.markers, uuid.uuid4().hex[:8])
        except RayError as error:
            failed = run.incidents.failed_starts() - failed_before
            if failed:
                raise StoppedError(StopReason(StopKind.START_FAILED, "; ".join(map(str, failed)))) from error
            self.log(f"window {run.window + 1}: {type(error).__name__}: {masked_error(error)[:200]}")
        refused = run.incidents.store_refusals()
        if refused:  # no record is at fault, and further answers would be lost
            raise StoppedError(StopReason(StopKind.STORE, str(refused[0])))

    def _fails_alone(self, run: WindowRun, row: int) -> bool:
        self._run(run, np.array([row]), 1)
        return row in self.missing(run)

    def missing(self, run: WindowRun) -> np.ndarray:
        """Return the rows of a window that no shard answers, sorted."""
        wanted = run.wanted
        answered = np.zeros(run.plan.window_size(run.window), bool)
        for shard in self.markers.shards(run.window):
            answered[shard.rows] = True
        left: np.ndarray = wanted[~answered[wanted]]
        return left

    def _commit_dead(self, window: int, plan: InputPlan, rows: list[int]) -> None:
        """Commit dead letters for rows that failed even alone in their actor."""
        if not rows:
            return
        wanted = set(rows)
        repeated = plan.duplicates_of(window)
        message = "no answer in any shard, not even alone: its process died or failed each time (see the logs of Ray)"
        records = [
            replace(record, dead=DeadLetter("generate", "NoAnswer", message))
            for split in plan.splits(window)
            if wanted & set(range(split.row, split.row + split.take))
            for record in read_split(self.settings.input, split, self.settings.columns, repeated)
            if record.row in wanted
        ]
        dead = dead_letters(records, window * plan.window_rows)
        none, dead_rows = np.empty(0, np.int64), np.array([r.row for r in records], np.int64)
        name = f"{self.markers.shard_prefix(window)}{uuid.uuid4().hex[:8]}-000000"
        shard = Shard(name, None, None, none, dead_rows, count_rows(pa.table({}), dead))
        commit_shard(self.markers, shard, pa.table({}), dead)
