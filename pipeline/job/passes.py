"""Answer the rows of a job in passes: all of them in one stream, then what has no answer in smaller shards."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from typing import Protocol

import numpy as np
import pyarrow as pa
from ray.exceptions import RayError

from pipeline.cluster.sizing import alive_nodes, shortages
from pipeline.records import DeadLetter, Record
from pipeline.stages.dataset import Stream
from pipeline.stages.output_schema import dead_letters
from pipeline.stages.read import Missing, count_missing
from pipeline.storage.commit.counts import Counts, count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard
from pipeline.storage.input.plan import InputPlan
from pipeline.storage.input.read import read_split
from pipeline.storage.store.redact import masked_error

from .error_budget import ErrorBudget
from .preflight import input_problem
from .routing_report import RoutingReport
from .session import Session
from .stop import StopKind, StoppedError, StopReason
from .watch import STALL_SECONDS, Watch

_SMALL_SHARD = 20  # of the second pass, which isolates a record that kills its actor among few others
# The number of records that the last pass runs one by one before they become dead letters: the first number, or the
# error budget up to the second one. If more are left, the cluster or the store is at fault.
_MAX_ALONE, _MAX_ALONE_IN_BUDGET = 32, 500


class WindowEnds(Protocol):
    """Ends windows once all of their rows are committed. ``ended``: windows that are."""

    ended: set[int]

    def start(self, window: int) -> None:
        """Start to end a window."""

    def wait(self) -> None:
        """Wait for all that were started. A window that turned out to lack rows is not ended."""


class Passes:
    """Gives the missing rows of a job an answer or a dead letter. ``counts``: of all that is committed."""

    def __init__(self, session: Session, stream: Stream, ends: WindowEnds, budget: ErrorBudget, counts: Counts) -> None:
        self.session, self.stream, self.ends, self.budget, self.counts = session, stream, ends, budget, counts
        self._plan, self._markers = stream.plan, stream.markers
        self._windows = 0
        self._routing = RoutingReport(stream.incidents, session.log)

    def run(self, missing: Missing) -> int:
        """Answer the missing rows; return the number of those that stay without an answer.

        A record that kills its actor takes the other records of its shard along, so each pass has smaller shards. In
        the last one a shard is one record. Raises `StoppedError` over the error budget, if the store refuses rows, if
        actors cannot start, or if nothing succeeds any more.
        """
        self._check_budget()
        self._windows = len(missing)
        complete = [window for window, rows in missing.items() if not self._count({window: rows})]
        for window in complete:  # an earlier command was stopped before it could end them
            self.ends.start(window)
        missing = {window: rows for window, rows in missing.items() if window not in complete}
        all_rows, size = self._count(missing), self.session.settings.shard_records
        if all_rows:
            missing, _ = self._repeat(missing, size)
        if size > _SMALL_SHARD and self._count(missing):
            missing, _ = self._repeat(missing, _SMALL_SHARD)
        left = self._count(missing)
        limit = max(_MAX_ALONE, min(_MAX_ALONE_IN_BUDGET, int(self.session.settings.error_budget * all_rows)))
        if left > limit * min(size, _SMALL_SHARD):  # a record at fault takes its shard along
            return left
        if left:
            missing, is_whole = self._repeat(missing, 1, alone=True)
            left = self._count(missing)
            if left > limit or left == all_rows > 1 or not is_whole:
                return left  # the records are not at fault
            self._commit_dead(missing)
        self.ends.wait()
        self._show("committed")
        return 0

    def _repeat(self, missing: Missing, shard_records: int, alone: bool = False) -> tuple[Missing, bool]:
        """Make a pass, and make it again as long as it answers rows and ends with the loss of the cluster.

        Returns the rows that stay without an answer, and whether the last pass came to its end.
        """
        while True:
            before = self._count(missing)
            is_whole = self._pass(missing, shard_records, alone)
            missing = self._still_missing(missing)
            left = self._count(missing)
            if not left:
                return missing, True
            if problem := input_problem(self.session.settings, self._plan):
                raise StoppedError(StopReason(StopKind.INPUT_CHANGED, problem))
            self.session.log(f"{left} of {before} records without an answer after a pass in shards of {shard_records}")
            if is_whole or left == before:
                return missing, is_whole

    def _pass(self, missing: Missing, shard_records: int, alone: bool) -> bool:
        """Make one pass; return whether it came to its end. Rows that fail in it stay without an answer."""
        session, incidents = self.session, self.stream.incidents
        session.switch.check()
        session.progress.set_stage("routing")
        engines = 0 if alone else self.stream.pools.generate.max_actors  # alone, one record after another may fail
        failed_before = incidents.failed_starts()
        watch = Watch(incidents, engines, session.switch.stop, self._log_shortage)
        left = {window: self._count({window: rows}) for window, rows in missing.items()}
        try:
            with watch, closing(self.stream.run(missing, shard_records, alone)) as committed:
                for shard in committed:
                    if shard.refusal:  # no record is at fault, and further answers would be lost
                        raise StoppedError(StopReason(StopKind.STORE, f"commit: {shard.refusal}"))
                    watch.committed()
                    self._routing.committed(shard.counts.rows)
                    self._add(shard.counts)
                    left[shard.window] -= shard.counts.rows
                    if left[shard.window] == 0:
                        self.ends.start(shard.window)
                    session.switch.check()
        except RayError as error:
            failed = incidents.failed_starts() - failed_before
            if failed:
                raise StoppedError(StopReason(StopKind.START_FAILED, "; ".join(map(str, failed)))) from error
            session.log(f"the stream was lost: {type(error).__name__}: {masked_error(error)[:200]}")
            return False
        return True

    def _add(self, counts: Counts) -> None:
        self.counts += counts
        self._show("generating")
        self._check_budget()

    def _show(self, stage: str) -> None:
        self.session.progress.set_windows_left(self._windows - len(self.ends.ended))
        self.session.progress.update(self.counts, stage)

    def _check_budget(self) -> None:
        if problem := self.budget.problem(self.counts):
            raise StoppedError(StopReason(StopKind.BUDGET, problem))

    def _still_missing(self, missing: Missing) -> Missing:
        """Return the rows that no shard answers; end the windows that are complete after all."""
        self.ends.wait()
        found = {}
        for window, wanted in missing.items():
            if window not in self.ends.ended:
                rows = without_answer(self._markers, self._plan, window, wanted)
                if len(rows):
                    found[window] = rows
                else:
                    self.ends.start(window)
        self.ends.wait()
        return found

    def _commit_dead(self, missing: Missing) -> None:
        """Commit dead letters for rows that failed even alone in their actor."""
        message = "no answer in any shard, not even alone: its process died or failed each time (see the logs of Ray)"
        for window, rows in missing.items():
            assert rows is not None  # they are counted
            records = [
                replace(record, dead=DeadLetter("generate", "NoAnswer", message))
                for record in self._read(window, set(rows.tolist()))
            ]
            dead = dead_letters(records, window * self._plan.window_rows)
            none, dead_rows = np.empty(0, np.int64), np.array([r.row for r in records], np.int64)
            name = f"{self._markers.shard_prefix(window)}{uuid.uuid4().hex[:8]}-dead"
            shard = Shard(name, None, None, none, dead_rows, count_rows(pa.table({}), dead))
            commit_shard(self._markers, shard, pa.table({}), dead)
            self._add(shard.counts)
            self.ends.start(window)

    def _read(self, window: int, rows: set[int]) -> Iterator[Record]:
        settings, repeated = self.session.settings, self._plan.duplicates_of(window)
        for split in self._plan.splits(window):
            if rows & set(range(split.row, split.row + split.take)):
                records = read_split(settings.input, split, settings.columns, repeated)
                yield from (record for record in records if record.row in rows)

    def _count(self, missing: Missing) -> int:
        return count_missing(self._plan, missing)

    def _log_shortage(self) -> None:
        """Log what the cluster lacks: Ray waits silently for a node that is gone, because it may come back."""
        for problem in islice(shortages(self.stream.pools, alive_nodes()), 1):
            self.session.log(f"nothing was committed for {STALL_SECONDS:.0f} s; cluster: {problem}")


def without_answer(markers: MarkerStore, plan: InputPlan, window: int, wanted: np.ndarray | None) -> np.ndarray:
    """Return the rows of a window that no shard answers, sorted. ``wanted``: None for all rows of the window."""
    rows = np.arange(plan.window_size(window)) if wanted is None else wanted
    is_answered = np.zeros(plan.window_size(window), bool)
    for shard in markers.shards(window):
        is_answered[shard.rows] = True
    left: np.ndarray = rows[~is_answered[rows]]
    return left
