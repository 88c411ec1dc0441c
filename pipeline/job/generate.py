"""The whole job: window by window, until every record is answered or set aside."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from pipeline.cluster.resources import Pools
from pipeline.engine.serving.heap import give_back_freed_memory, keep_no_freed_memory
from pipeline.records import DEAD, SENTENCE_MIXTURES, joined
from pipeline.settings import JobSettings
from pipeline.stages.commit import OutputShape
from pipeline.stages.dataset import WindowRun
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords
from pipeline.storage.commit.counts import Counts, total
from pipeline.storage.commit.lease import Lease
from pipeline.storage.commit.log import CommitLog
from pipeline.storage.commit.orphans import discard, sweep_unnamed
from pipeline.storage.input.plan import InputPlan
from pipeline.storage.output.dataset_card import CARD
from pipeline.storage.output.run import RUN, RunFolder, packed_schema
from pipeline.storage.store.redact import masked
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.logs import tell
from pipeline.telemetry.progress import Listener, Point, Progress

from .error_budget import ErrorBudget
from .preflight import Prepared, compare, input_problem, prepare, versions
from .result import JobResult
from .stop import StoppedError, StopSwitch, outages_stop
from .window import WindowJob
from .windows import Windows

_TAKEN = "another driver took the output over"


class GenerateJob:
    """One generation job over an input, resumable at any point.

    `prepare` checks everything and needs no Ray; `run` does the work. ``generator``, ``router``: see `WindowRun`.
    """

    def __init__(
        self,
        settings: JobSettings,
        say: Callable[[str], None] = print,
        *,
        generator: type = GenerateRecords,
        listener: Listener = lambda snapshot: None,
        router: type = RouteRecords,
    ) -> None:
        self.settings = settings
        self.progress = Progress(listener)
        self._generator, self._router = generator, router
        self._incidents = Incidents()
        self.say = say
        self.folder = RunFolder(settings.output)
        self.log: CommitLog = self.folder.log
        self._prepared: Prepared | None = None
        self._new_run = False
        self._pools: Pools | None = None
        self._before: dict[str, Any] = {}  # what run.json says of earlier commands
        self._phases: dict[str, float] = {}  # seconds of the driver before the first window

    def prepare(self, new_run: bool = False) -> Prepared:
        """Check and plan; raises `UserError` before anything is written.

        ``new_run`` lets `run` discard an earlier run in the output, once Ray has started too.
        """
        if self._prepared is None:
            start = time.monotonic()
            keep_no_freed_memory()
            with outages_stop():
                self._prepared = prepare(self.settings, self.folder, new_run)
            give_back_freed_memory()
            self._phases["prepare"] = time.monotonic() - start
            self._new_run = new_run
        return self._prepared

    def run(self, start_pools: Callable[[], Pools]) -> JobResult:
        """Answer every record that has no answer yet.

        ``start_pools`` starts Ray and says what the stages may take of it; a finished run does not call it.
        """
        prepared = self.prepare()
        with outages_stop():
            return self._run_unfinished(prepared, start_pools)

    def _run_unfinished(self, prepared: Prepared, start_pools: Callable[[], Pools]) -> JobResult:
        if not self._new_run:
            self.log.run = (self.folder.read_json(RUN) or {}).get("run")
        if self._is_finished(prepared.plan):
            return self._result(prepared.plan, self._committed(prepared.plan), 0, 0.0)
        switch = StopSwitch()
        with self._leased(switch):
            self.progress.stage("starting Ray")
            start = time.monotonic()
            self._pools = start_pools() if self._unfinished(prepared.plan) else None
            self._phases["start of Ray"] = time.monotonic() - start
            with switch:  # after Ray, which has a handler of its own
                return self._run(prepared, self._pools or Pools(), switch)

    @contextmanager
    def _leased(self, switch: StopSwitch) -> Iterator[None]:
        """With a lease of the output, which `_check_lease` looks at."""
        with Lease(self.settings.output, lambda: switch.stop(_TAKEN), self.say) as self._lease:
            yield

    def _check_lease(self) -> None:
        """`StoppedError` where another driver has taken the output over: what is written now would be over its own."""
        if not self._lease.holds():
            raise StoppedError(_TAKEN)

    def _run(self, prepared: Prepared, pools: Pools, switch: StopSwitch) -> JobResult:
        plan, shape = prepared.plan, self.shape(prepared)
        start, started = time.monotonic(), time.time()
        earlier = None if self._new_run else self._earlier(prepared)
        self.settings = replace(self.settings, run=(earlier or {}).get("run") or uuid.uuid4().hex[:12])
        tell("job started", run=self.settings.run, output=masked(self.settings.output), records=plan.rows)
        self.log.run = self.settings.run
        if earlier is None:
            # Of a run that --new-run discards; else there is nothing. What says that it was one goes first: killed
            # then, the job is refused until it is given --new-run again.
            self.folder.remove(RUN)
            self.folder.remove(CARD)
            discard(self.log)
            self._new_run = False
            self.folder.save_plan(plan)
            self._write_run(prepared, shape, "running", started, None)
        else:
            self._before = earlier
            self.progress.timeline = [Point(*point) for point in earlier.get("timeline", [])]
        self.log.sweep_finished()
        before = self._committed(plan)
        self.progress.begin(plan.rows, plan.windows, before)
        try:
            with outages_stop():
                incomplete = self._run_windows(prepared, shape, pools, switch)
                self._check_lease()
        except (KeyboardInterrupt, StoppedError):
            with suppress(Exception, StoppedError):  # the store may be what stopped it, or another driver
                self._check_lease()
                missing = plan.rows - (done := self._committed(plan)).data - done.dead
                result = self._result(plan, before, missing, time.monotonic() - start)
                self._write_run(prepared, shape, "stopped", started, result)
            raise
        if not incomplete:
            sweep_unnamed(self.log, self._check_lease)
        result = self._result(plan, before, incomplete, time.monotonic() - start)
        self._check_lease()
        self._write_run(prepared, shape, "finished" if not incomplete else "incomplete", started, result)
        return result

    def _run_windows(self, prepared: Prepared, shape: OutputShape, pools: Pools, switch: StopSwitch) -> int:
        """Run what is unfinished, window by window; returns how many rows stay without an answer."""
        plan = prepared.plan
        budget = ErrorBudget(self.settings.error_budget, self.settings.error_max, plan.rows)
        finished = self.log.finished()
        left = sorted(set(range(plan.windows)) - finished.keys())
        if not left:
            return 0
        counted = total(files.counts for files in self.log.marked(finished.values()))
        self._incidents = Incidents.listening()
        runs = [self._window_run(prepared, pools, shape, window) for window in left]
        job = WindowJob(self.settings, self.log, self.say, switch.check, partial(input_problem, self.settings, plan))
        return Windows(job, runs, budget, switch, self.progress).run(counted)

    def _earlier(self, prepared: Prepared) -> dict[str, Any] | None:
        """What `run.json` says now that this driver holds the lease: it was checked before another one ended."""
        earlier = self.folder.read_json(RUN)
        if earlier is not None:
            compare(earlier["guard"], prepared.guard, self.settings.output)
        return earlier

    def _window_run(
        self, prepared: Prepared, pools: Pools, shape: OutputShape, window: int, rows: np.ndarray | None = None
    ) -> WindowRun:
        return WindowRun(
            self.settings,
            pools,
            prepared.plan,
            window,
            prepared.context,
            shape,
            self._incidents,
            self._generator,
            self._router,
            rows,
        )

    def _is_finished(self, plan: InputPlan) -> bool:
        if self._new_run or self._unfinished(plan):
            return False
        earlier = self.folder.read_json(RUN)
        return earlier is not None and earlier["state"] == "finished"

    def _unfinished(self, plan: InputPlan) -> list[int]:
        finished = {} if self._new_run else self.log.finished()
        return [window for window in range(plan.windows) if window not in finished]

    def shape(self, prepared: Prepared) -> OutputShape:
        """The schema of the data files."""
        prints = prepared.fingerprints
        settings, passed = self.settings, prepared.plan.passed
        more = joined(*([SENTENCE_MIXTURES] if settings.sentences else []), settings.asked)
        return OutputShape(passed, settings.keep_prompt, prints["router"], prints["bank"], more)

    def _result(self, plan: InputPlan, before: Counts, incomplete: int, seconds: float) -> JobResult:
        counted = self._committed(plan)
        budget = ErrorBudget(self.settings.error_budget, self.settings.error_max, plan.rows)
        return JobResult(
            plan.rows,
            counted,
            seconds,
            counted.completion_tokens - before.completion_tokens,
            incomplete,
            budget.explain(counted) if budget.is_over(counted) else "",
            self._incidents.noted(),
        )

    def _committed(self, plan: InputPlan) -> Counts:
        """Counts of all that is committed, in finished windows and in others."""
        finished = self.log.finished()
        others = sorted(set(range(plan.windows)) - finished.keys())
        of_finished = (files.counts for files in self.log.marked(finished.values()))
        return total(chain(of_finished, map(self.log.counts, others)))

    def _write_run(
        self, prepared: Prepared, shape: OutputShape, state: str, started: float, result: JobResult | None
    ) -> None:
        values: dict[str, Any] = {
            "state": state,
            "run": self.settings.run,
            "config": self.settings.config,
            "versions": versions(),
            "fingerprints": prepared.fingerprints,
            "guard": prepared.guard,
            "schemas": {"data": packed_schema(shape.schema), "dead": packed_schema(DEAD)},
            "renamed_columns": {k: v for k, v in shape.passed.items() if k != v},
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        }
        if result is not None:
            values |= result.told | self._spent(result)
            values["incidents"] = _together(self._before.get("incidents", []), values["incidents"])
            values["timeline"] = [astuple(point) for point in self.progress.timeline]
            tell("job ended", run=self.settings.run, state=state, **values["timings"])
        self.folder.write_json(RUN, values)

    def _spent(self, result: JobResult) -> dict[str, Any]:
        """Devices and timings. Where nothing was left but the end, those of the command before: this one used none."""
        if self._pools is None and "timings" in self._before:
            return {key: self._before[key] for key in ("devices", "timings")}
        devices = (self._pools or Pools()).devices
        spent = self._before.get("devices", {}).get("device_seconds", 0.0) + result.seconds * devices["generate_actors"]
        return {
            "devices": devices | {"device_seconds": round(spent, 2)},
            "timings": result.timings(self._phases, self._incidents.spent()),
        }


def _together(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Incidents of earlier commands and of this one."""
    times: Counter[str] = Counter()
    for incident in (*before, *now):
        times[incident["what"]] += incident["times"]
    return [{"what": what, "times": count} for what, count in times.most_common()]
