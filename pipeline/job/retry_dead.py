"""The retry job: answer the dead letters of a finished run again."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

import numpy as np

from pipeline.cluster.resources import Pools
from pipeline.errors import UserError
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords
from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.orphans import remove_orphans, sweep_finished_windows
from pipeline.storage.commit.replace import RetryFilter, replace_dead_letters, rows_to_retry
from pipeline.storage.output.run import CARD, RUN, RunFolder
from pipeline.storage.store.redact import masked
from pipeline.telemetry.progress import JobProgress, Listener

from .error_budget import ErrorBudget
from .passes import Passes
from .preflight import prepare
from .session import Session, committed_counts, open_session, read_finished_run
from .stop import StoppedError, stop_on_store_errors


@dataclass(frozen=True)
class RetryResult:
    """Numbers of dead letters that were retried, of those that are answered now, and of those that the run has left.

    ``over_budget``: why the run is over its error budget, else empty.
    """

    retried: int
    answered: int
    dead: int
    over_budget: str


class RetryJob:
    """Answers dead letters of a finished run again, with the settings that the run was made with.

    A window keeps its old dead letters until all of them are retried or the job stops; then a new marker replaces the
    old one. If the process is killed before, the window stays as it was.
    """

    def __init__(
        self,
        settings: JobSettings,
        selected: RetryFilter,
        log: Callable[[str], None] = print,
        *,
        generator: type = GenerateRecords,
        listener: Listener = lambda snapshot: None,
    ) -> None:
        self.settings, self.folder = settings, RunFolder(settings.output)
        self._selected, self._generator = selected, generator
        self._log, self._progress = log, JobProgress(listener)

    @stop_on_store_errors()
    def run(self, start_pools: Callable[[], Pools]) -> RetryResult:
        """Answer the selected dead letters; ``start_pools`` is called only if there are any.

        Raises `UserError` if the run is not finished, `StoppedError` if the job has to stop before the last window.
        """
        prepared, url = prepare(self.settings, self.folder), masked(self.settings.output)
        finished = read_finished_run(self.folder, prepared)
        if finished is None:
            raise UserError(f"run: {url} is not finished; finish it first, with the command that started it")
        with open_session(self.settings, prepared, self.folder, self._progress, self._log) as session:
            if session.settings.run != finished["run"]:
                raise UserError(f"run: {url} was replaced by a new run meanwhile; give the command again")
            return self._run(session, start_pools)

    def _run(self, session: Session, start_pools: Callable[[], Pools]) -> RetryResult:
        sweep_finished_windows(session.markers, session.check_lease, fence=True)
        session.markers = session.markers.with_session()
        rows, before = self._select_rows(session), committed_counts(session.markers, session.prepared.plan)
        # The card is removed while files that no marker names may be in the folders. If it is missing already, an
        # earlier command was killed before it removed them.
        is_complete = self.folder.read(CARD) is not None
        if rows:
            session.start_ray(start_pools)
            self.folder.remove(CARD)
            try:
                with session.switch, stop_on_store_errors():
                    self._retry(session, rows)
            except (KeyboardInterrupt, StoppedError):
                with suppress(Exception, StoppedError):  # the store may have caused the stop, or another driver
                    _write_counts(session, rows, before)
                raise
        result = _write_counts(session, rows, before)
        if rows or not is_complete:
            remove_orphans(session.markers, session.check_lease, fence=True)
        return result

    def _select_rows(self, session: Session) -> dict[int, np.ndarray]:
        """Return the rows to retry by window, as indices in the window; windows without any are left out."""
        markers, window_rows = session.markers, session.prepared.plan.window_rows
        finished = markers.finished_markers()
        windows = zip(finished, markers.read_windows(finished.values()), strict=True)
        found = ((w, rows_to_retry(markers, files, self._selected) - w * window_rows) for w, files in windows)
        return {window: rows for window, rows in found if len(rows)}

    def _retry(self, session: Session, rows: dict[int, np.ndarray]) -> None:
        records = sum(map(len, rows.values()))
        no_budget = ErrorBudget(1.0, None, records)  # all of them may become dead letters again
        session.progress.start(records, session.prepared.plan.windows, Counts())
        ends = _LetterReplacer(session, rows)
        passes = Passes(session, session.stream(self._generator, RouteRecords), ends, no_budget, Counts())
        try:
            passes.run(rows)
        except (KeyboardInterrupt, StoppedError):
            with suppress(Exception, StoppedError):  # the store may have caused the stop, or another driver
                ends.start_others()
            raise
        ends.start_others()


class _LetterReplacer:
    """Replaces the dead letters of a window by what was committed for them. ``ended``: windows where that is done."""

    def __init__(self, session: Session, rows: Mapping[int, np.ndarray]) -> None:
        self.ended: set[int] = set()
        self._session, self._rows = session, rows
        self._marker = {window: session.markers.newest_marker(window)[0] for window in rows}

    def start(self, window: int) -> None:
        """Replace the letters, at once."""
        session, retried = self._session, self._rows[window]
        session.check_lease()
        first_row = window * session.prepared.plan.window_rows
        replace_dead_letters(session.markers, window, self._marker[window], first_row, retried)
        self.ended.add(window)
        session.log(f"window {window + 1}/{session.prepared.plan.windows}: {len(retried)} dead letters retried")

    def start_others(self) -> None:
        """Replace the letters of windows that lack rows, by the answers that are committed."""
        for window in self._rows.keys() - self.ended:
            self.start(window)

    def wait(self) -> None:
        """Do nothing: `start` waits."""


def _write_counts(session: Session, rows: dict[int, np.ndarray], before: Counts) -> RetryResult:
    """Write the run's counts as they are now to `run.json`, also if a killed command left them out of date."""
    values = session.folder.read_json(RUN)
    assert values is not None  # it is finished
    budget, counts = session.prepared.budget, committed_counts(session.markers, session.prepared.plan)
    retried, answered = sum(map(len, rows.values())), counts.data - before.data
    if rows:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        values.setdefault("retries", []).append({"at": at, "retried": retried, "answered": answered})
    if rows or any(values["counts"].get(name) != value for name, value in asdict(counts).items()):
        values["counts"] |= asdict(counts)
        session.check_lease()
        session.folder.write_json(RUN, values)
    over = f"{counts.dead} dead letters left, over {budget.rule}" if budget.problem(counts) else ""
    return RetryResult(retried, answered, counts.dead, over)
