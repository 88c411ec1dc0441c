"""The whole job: window by window, round by round, until every record is answered or set aside."""

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..records import DEAD
from ..storage.columns import record_text
from ..storage.commit import CommitLog, Shard, Tally, shard_prefix, tally
from ..storage.plan import InputPlan
from ..storage.read import read_split
from ..storage.run import RUN, RunFolder, packed_schema
from .graph import WindowRun
from .prepare import Prepared, prepare, versions
from .settings import JobSettings, Pools
from .sink import OutputShape

# Shard sizes of the rounds: a record that kills its actor is first caught in a shard, then among 20, then alone.
_ROUNDS = (20, 1)
# At most so many records are tried each in a run of its own before they are set aside; more are no bad records.
_ALONE = 32


@dataclass(frozen=True)
class JobResult:
    """What a job came to. ``incomplete``: records without an answer or a dead letter."""

    records: int
    tally: Tally
    seconds: float
    generated_tokens: int  # by this command, without what an earlier one had committed
    incomplete: int
    over_budget: bool

    @property
    def ok(self) -> bool:
        """Every record is committed or set aside, within the error budget."""
        return not self.incomplete and not self.over_budget


class GenerateJob:
    """One generation job over an input, resumable at any point.

    `prepare` checks everything and needs no Ray; `run` does the work.
    """

    def __init__(self, settings: JobSettings, say: Callable[[str], None] = print) -> None:
        self.settings = settings
        self.say = say
        self.folder = RunFolder(settings.output)
        self.log: CommitLog = self.folder.log
        self._prepared: Prepared | None = None

    def prepare(self, new_run: bool = False) -> Prepared:
        """Check and plan; raises `UserError` before anything is written.

        ``new_run`` discards what an earlier run left in the output, once all checks have passed.
        """
        if self._prepared is None:
            self._prepared = prepare(self.settings, self.folder, new_run)
            if new_run:
                self._discard()
        return self._prepared

    def _discard(self) -> None:
        """Remove an earlier run: `run.json` and markers first, so that readers never see half of it."""
        for name in (RUN, "_commits", "data", "dead", "_plan", "report.html"):
            path = f"{self.log.root}/{name}"
            if self.log.fs.exists(path):
                self.log.fs.rm(path, recursive=True)

    def run(self, start_pools: Callable[[], Pools]) -> JobResult:
        """Answer every record that has no answer yet.

        ``start_pools`` starts Ray and says what the stages may take of it; a finished run does not call it.
        """
        prepared = self.prepare()
        start, started = time.monotonic(), time.time()
        shape = self._shape(prepared)
        before = self._committed(prepared.plan)
        finished = self.log.finished_windows()
        todo = [window for window in range(prepared.plan.windows) if window not in finished]
        pools = start_pools() if todo else Pools()
        if self.folder.read_json(RUN) is None:
            self.folder.save_plan(prepared.plan)
            self._write_run(prepared, shape, "running", started, None)
        incomplete = sum(self._run_window(window, prepared, shape, pools) for window in todo)
        result = self._result(prepared.plan, before, incomplete, time.monotonic() - start)
        self._write_run(prepared, shape, "finished" if not incomplete else "incomplete", started, result)
        return result

    def _run_window(self, window: int, prepared: Prepared, shape: OutputShape, pools: Pools) -> int:
        """Answer or set aside every row of a window; returns how many stay without an answer."""
        plan = prepared.plan
        run = WindowRun(self.settings, pools, plan, window, prepared.context, shape)
        missing = self._rounds(run)
        if 0 < len(missing) <= _ALONE:
            guilty = [row for row in missing.tolist() if self._fails_alone(run, row)]
            self._set_aside(window, plan, guilty)
            missing = self._missing(window, plan.window_size(window))
        if len(missing):
            return len(missing)
        files = self.log.finish_window(window)
        self.say(f"window {window + 1}/{plan.windows}: {files.tally.data} committed, {files.tally.dead} dead")
        return 0

    def _rounds(self, run: WindowRun) -> np.ndarray:
        """Run all rows that have no answer, then what is left of them in smaller shards; returns what is left then.

        When a record kills its actor, the shards that waited for the same actor are lost with it: the next round
        catches them up.
        """
        size = run.plan.window_size(run.window)
        missing = self._missing(run.window, size)
        shard_records = self.settings.shard_records
        for shard in [shard_records, *(n for n in _ROUNDS if n < shard_records)]:
            if not len(missing):
                break
            self._run(run, missing, shard)
            still = self._missing(run.window, size)
            if len(still):
                self.say(
                    f"window {run.window + 1}: {len(still)} of {len(missing)} records got no answer; again, smaller"
                )
            if len(still) == len(missing) > _ALONE * shard:
                break  # nothing at all went through: not a few bad records, but the cluster or the store
            missing = still
        return missing

    def _run(self, run: WindowRun, missing: np.ndarray, shard_records: int) -> None:
        everything = len(missing) == run.plan.window_size(run.window)
        run.run(self.log, uuid.uuid4().hex[:8], None if everything else missing, shard_records)

    def _fails_alone(self, run: WindowRun, row: int) -> bool:
        self._run(run, np.array([row]), 1)
        return row in self._missing(run.window, run.plan.window_size(run.window))

    def _missing(self, window: int, size: int) -> np.ndarray:
        """Rows of a window that no shard answers, sorted."""
        answered = [shard.rows for shard in self.log.shards(window)]
        return np.setdiff1d(np.arange(size), np.concatenate([np.empty(0, np.int64), *answered]))

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
        message = "the generating process died each time this record was tried, at last alone"
        letters = [
            {
                "id": r.id,
                "stage": "generate",
                "error_type": "ActorDied",
                "message": message,
                "record": record_text(r),
            }
            for r in records
        ]
        dead = pa.Table.from_pylist(letters, schema=DEAD)
        none = np.empty(0, np.int64)
        places = np.array([r.row for r in records], np.int64)
        name = f"{shard_prefix(window)}{uuid.uuid4().hex[:8]}-000000"
        self.log.commit(Shard(name, None, None, none, places, tally(pa.table({}), dead)), pa.table({}), dead)

    def _shape(self, prepared: Prepared) -> OutputShape:
        prints = prepared.fingerprints
        return OutputShape(prepared.plan.passed, self.settings.keep_prompt, prints["router"], prints["bank"])

    def _result(self, plan: InputPlan, before: Tally, incomplete: int, seconds: float) -> JobResult:
        total = self._committed(plan)
        over = total.dead > self.settings.error_budget * plan.rows
        return JobResult(
            plan.rows, total, seconds, total.completion_tokens - before.completion_tokens, incomplete, over
        )

    def _committed(self, plan: InputPlan) -> Tally:
        """Counts of all that is committed, in finished windows and in others."""
        finished = self.log.finished_windows()
        total = sum((files.tally for files in finished.values()), Tally())
        for window in set(range(plan.windows)) - set(finished):
            total += sum((shard.tally for shard in self.log.shards(window)), Tally())
        return total

    def _write_run(
        self, prepared: Prepared, shape: OutputShape, state: str, started: float, result: JobResult | None
    ) -> None:
        values: dict[str, Any] = {
            "state": state,
            "config": self.settings.config,
            "versions": versions(),
            "fingerprints": prepared.fingerprints,
            "guard": prepared.guard,
            "schemas": {"data": packed_schema(shape.schema), "dead": packed_schema(DEAD)},
            "renamed_columns": {k: v for k, v in shape.passed.items() if k != v},
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        }
        if result is not None:
            values["counts"] = {
                "records": result.records,
                "incomplete": result.incomplete,
                **asdict(result.tally),
            }
            values["timings"] = {
                "seconds": round(result.seconds, 2),
                "generated_tokens": result.generated_tokens,
                "tokens_per_second": round(result.generated_tokens / result.seconds, 1),
            }
        self.folder.write_json(RUN, values)
