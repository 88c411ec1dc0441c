"""One window of a job: rounds over the rows that have no answer, in ever smaller shards, until none is left."""

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray.exceptions import RayError

from pipeline.records import DEAD
from pipeline.settings import JobSettings
from pipeline.stages.dataset import WindowRun
from pipeline.storage.commit.compaction import merge_files
from pipeline.storage.commit.counts import Counts, count_rows
from pipeline.storage.commit.log import CommitLog
from pipeline.storage.commit.markers import Shard
from pipeline.storage.input.columns import record_text
from pipeline.storage.input.plan import InputPlan
from pipeline.storage.input.read import read_split
from pipeline.storage.store.redact import one_line
from pipeline.telemetry.logs import tell

from .prefetch import RoutedAhead
from .stop import StoppedError

# Shard sizes of the rounds: a record that kills its actor is first caught in a shard, then among 20, then alone.
_ROUNDS = (20, 1)
# So many records of a window, or the error budget up to the larger number, are tried each in a run of its own before
# they are set aside; where more are left it is not the records.
_ALONE, _ALONE_AT_MOST = 32, 500


class WindowJob:
    """Answers or sets aside every row of one window; `StoppedError` where the store refuses to take them.

    ``between``: called before each run of the graph; it may raise to stop the job. ``problem``: why a window cannot be
    finished, asked before it is.
    """

    def __init__(
        self,
        settings: JobSettings,
        log: CommitLog,
        say: Callable[[str], None],
        between: Callable[[], None],
        problem: Callable[[], str] = str,
    ) -> None:
        self.settings, self.log, self.say, self.between, self.problem = settings, log, say, between, problem

    def run(self, run: WindowRun, ahead: RoutedAhead | None = None) -> tuple[int, Counts]:
        """Do it; returns how many rows stay without an answer, and the counts of those that have one.

        ``ahead``: the window, routed already.
        """
        window, plan = run.window, run.plan
        size = plan.window_size(window)
        missing = self.rounds(run, ahead)
        self._check()
        if len(missing) == size > 1:
            return size, Counts()  # nothing at all went through: it is not the records
        if 0 < len(missing) <= max(_ALONE, min(_ALONE_AT_MOST, int(self.settings.error_budget * size))):
            guilty = [row for row in missing.tolist() if self._fails_alone(run, row)]
            self._check()  # those of a file that changed meanwhile are not to blame
            self._set_aside(window, plan, guilty)
            missing = self.missing(run)
        if len(missing):
            return len(missing), self.log.counts(window)
        join = partial(merge_files, self.log, window, self.settings.file_bytes)
        files = self.log.finish_window(window, size, join)
        self.say(f"window {window + 1}/{plan.windows}: {files.counts.data} committed, {files.counts.dead} dead")
        tell("window finished", run=self.settings.run, window=window, data=files.counts.data, dead=files.counts.dead)
        return 0, files.counts

    def _check(self) -> None:
        """`StoppedError` where the window cannot be finished."""
        if problem := self.problem():
            raise StoppedError(problem)

    def rounds(self, run: WindowRun, ahead: RoutedAhead | None = None) -> np.ndarray:
        """Run all rows that have no answer, then what is left of them in smaller shards; returns what is left then.

        When a record kills its actor, the shards that waited for the same actor are lost with it: the next round
        catches them up.
        """
        missing = self.missing(run)
        shard_records = self.settings.shard_records
        for shard in [shard_records, *(n for n in _ROUNDS if n < shard_records)]:
            if not len(missing):
                break
            self._run(run, missing, shard, ahead.take() if ahead else None)
            ahead = None
            still = self.missing(run)
            if len(still):
                self.say(
                    f"window {run.window + 1}: {len(still)} of {len(missing)} records got no answer; again, smaller"
                )
            if len(still) == len(missing) > _ALONE * shard:
                break  # nothing at all went through: not a few bad records, but the cluster or the store
            missing = still
        return missing

    def _run(self, run: WindowRun, missing: np.ndarray, shard_records: int, routed: Any = None) -> None:
        """Run the graph once. What fails in it has no answer then; where its actors cannot start, the job stops."""
        self.between()
        failed_before = run.incidents.failed_starts()
        try:
            if routed is None:
                routed = run.routed(run.some(missing), shard_records)
            run.generate(routed, self.log, uuid.uuid4().hex[:8])
        except RayError as error:
            failed = run.incidents.failed_starts() - failed_before
            if failed:
                raise StoppedError("; ".join(failed)) from error
            self.say(f"window {run.window + 1}: {type(error).__name__}: {one_line(error)[:200]}")
        refused = run.incidents.refusals()
        if refused:  # no record is to blame, and what is generated would be lost
            raise StoppedError(refused[0])

    def _fails_alone(self, run: WindowRun, row: int) -> bool:
        self._run(run, np.array([row]), 1)
        return row in self.missing(run)

    def missing(self, run: WindowRun) -> np.ndarray:
        """Rows of a window that no shard answers, sorted."""
        wanted = run.wanted
        answered = np.zeros(run.plan.window_size(run.window), bool)
        for shard in self.log.shards(run.window):
            answered[shard.rows] = True
        left: np.ndarray = wanted[~answered[wanted]]
        return left

    def _set_aside(self, window: int, plan: InputPlan, rows: list[int]) -> None:
        """Dead letters for rows that killed their actor even when they were alone in it."""
        if not rows:
            return
        wanted = set(rows)
        repeated = plan.duplicates_of(window)
        records = [
            record
            for split in plan.splits(window)
            if wanted & set(range(split.row, split.row + split.take))
            for record in read_split(self.settings.input, split, self.settings.columns, repeated)
            if record.row in wanted
        ]
        message = "no answer in any shard, at last alone: its process died or failed each time (see the logs of Ray)"
        letters = [
            {
                "id": r.id,
                "stage": "generate",
                "error_type": "NoAnswer",
                "message": message,
                "record": record_text(r),
                "row": window * plan.window_rows + r.row,
            }
            for r in records
        ]
        dead = pa.Table.from_pylist(letters, schema=DEAD)
        none = np.empty(0, np.int64)
        places = np.array([r.row for r in records], np.int64)
        name = f"{self.log.prefix(window)}{uuid.uuid4().hex[:8]}-000000"
        shard = Shard(name, None, None, none, places, count_rows(pa.table({}), dead))
        self.log.commit(shard, pa.table({}), dead)
