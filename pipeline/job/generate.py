"""The generate job: answer every record of an input, and go on where an earlier command stopped."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from pipeline.cluster.resources import Pools
from pipeline.routing.router import unnamed_line
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords
from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.lease import Lease
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.orphans import discard_run, remove_orphans, sweep_finished_windows
from pipeline.storage.commit.window import finish_window
from pipeline.storage.output.run import RUN, RunFolder, artifacts
from pipeline.storage.store.redact import masked
from pipeline.telemetry.logs import log_event
from pipeline.telemetry.progress import JobProgress, Listener, TimelinePoint

from .finish import WindowFinisher
from .passes import Passes, without_answer
from .preflight import Prepared, prepare
from .result import JobResult, write_run
from .session import Session, committed_counts, open_session, read_finished_run, unfinished_windows
from .stop import StoppedError, stop_on_store_errors


class GenerateJob:
    """Answers the records of an input, each with its own mixture of adapters; a stopped job can be run again.

    `prepare` checks everything and needs no Ray; `run` does the work. ``generator``, ``router``: see `Stream`.
    ``log`` takes lines for people, ``listener`` the progress.
    """

    def __init__(
        self,
        settings: JobSettings,
        log: Callable[[str], None] = print,
        *,
        generator: type = GenerateRecords,
        listener: Listener = lambda snapshot: None,
        router: type = RouteRecords,
    ) -> None:
        self.settings, self.folder = settings, RunFolder(settings.output)
        self._log, self._progress = log, JobProgress(listener)
        self._generator, self._router = generator, router
        self._prepared: Prepared | None = None

    def prepare(self, new_run: bool = False) -> Prepared:
        """Check and plan the job; raises `UserError` before anything is written.

        ``new_run``: let the next `run` discard an earlier run in the output, once Ray has started.
        """
        if self._prepared is None:
            self._prepared = prepare(self.settings, self.folder, new_run)
            self.settings = self.settings.with_routing(self._prepared.routing)
            self._log(str(self.settings.engine_choice))
            if self._prepared.unnamed:
                self._log(unnamed_line(self._prepared.unnamed))
        return self._prepared

    @stop_on_store_errors()
    def run(self, start_pools: Callable[[], Pools]) -> JobResult:
        """Answer every record that has no answer yet.

        ``start_pools`` starts Ray and returns the resources of the stages; it is not called if all windows are
        finished. Raises `StoppedError` if the job has to stop before; the same job goes on from there.
        """
        prepared = self.prepare()
        finished = read_finished_run(self.folder, prepared)
        if finished is not None:
            Lease(self.settings.output, lambda: None, self._log).remove_partial()
            counts = committed_counts(MarkerStore(self.folder.url, finished["run"]), prepared.plan)
            return JobResult(prepared.plan.rows, counts, prepared.budget.problem(counts))
        with open_session(self.settings, prepared, self.folder, self._progress, self._log) as session:
            if unfinished_windows(session.markers, prepared.plan):
                session.start_ray(start_pools)
            with session.switch:  # after Ray, which has a handler of its own
                return self._run(session)

    def _run(self, session: Session) -> JobResult:
        """Answer the unfinished windows, and write the result to `run.json`, also if the job stops."""
        start, plan = time.monotonic(), session.prepared.plan
        log_event("job started", run=session.settings.run, output=masked(session.settings.output), records=plan.rows)
        if session.earlier is None:
            _start_new_run(session)
            self._prepared = replace(session.prepared, new_run=False)  # the next `run` continues it
        else:
            session.progress.timeline = [TimelinePoint(*point) for point in session.earlier.get("timeline", [])]
        before = committed_counts(session.markers, plan)
        session.progress.start(plan.rows, plan.windows, before)
        try:
            with stop_on_store_errors():
                missing = self._answer(session, before)
                session.check_lease()
        except (KeyboardInterrupt, StoppedError):
            with suppress(Exception, StoppedError):  # the store may have caused the stop, or another driver
                session.check_lease()
                counts = committed_counts(session.markers, plan)
                missing = plan.rows - counts.data - counts.dead
                write_run(session, "stopped", _result(session, before, missing, start))
            raise
        if not missing:
            sweep_finished_windows(session.markers, session.check_lease)
            remove_orphans(session.markers, session.check_lease)
        result = _result(session, before, missing, start)
        session.check_lease()
        write_run(session, "incomplete" if missing else "finished", result)
        return result

    def _answer(self, session: Session, before: Counts) -> int:
        """Answer the rows of unfinished windows; return the number of rows that stay without an answer."""
        plan, markers, settings = session.prepared.plan, session.markers, session.settings
        windows = unfinished_windows(markers, plan)
        if not windows:
            return 0
        started = markers.windows_with_shards()
        missing = {w: without_answer(markers, plan, w, None) if w in started else None for w in windows}
        ends = WindowFinisher(markers, plan, settings.file_bytes, session.log)
        stream = session.stream(self._generator, self._router)
        left = Passes(session, stream, ends, session.prepared.budget, before).run(missing)
        # A window is left here if two of its shards held the same row, or if a listing of its shards came late.
        for window in [] if left else unfinished_windows(markers, plan):
            finish_window(markers, window, plan.window_size(window), settings.file_bytes)
        return left


def _start_new_run(session: Session) -> None:
    """Discard what an earlier run left in the output, and write the plan and `run.json` of a new one.

    `run.json` goes before the markers: if this command is killed meanwhile, the next one asks for --new-run again. It
    goes after the artifacts: those of an output without it are somebody else's.
    """
    if session.folder.exists(RUN):
        for name in artifacts(session.settings.columns.layout):
            session.folder.remove(name)
    session.folder.remove(RUN)
    discard_run(session.markers)
    session.folder.save_plan(session.prepared.plan)
    write_run(session, "running")


def _result(session: Session, before: Counts, missing: int, start: float) -> JobResult:
    """Return the result of a session. ``before``: counts of earlier commands; ``start``: by the monotonic clock."""
    plan, budget, seconds = session.prepared.plan, session.prepared.budget, time.monotonic() - start
    counts = committed_counts(session.markers, plan)
    tokens = counts.completion_tokens - before.completion_tokens
    return JobResult(plan.rows, counts, budget.problem(counts), missing, seconds, tokens, session.incidents.counts())
