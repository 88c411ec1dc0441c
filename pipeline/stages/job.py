"""The whole job: window by window, round by round, until every record is answered or set aside."""

import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from ..records import DEAD, SENTENCE_MIXTURES, joined
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
# So many records of a window, or the error budget up to the larger number, are tried each in a run of its own before
# they are set aside; where more are left it is not the records.
_ALONE, _ALONE_AT_MOST = 32, 500


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
        self._new_run = False

    def prepare(self, new_run: bool = False) -> Prepared:
        """Check and plan; raises `UserError` before anything is written.

        ``new_run`` lets `run` discard an earlier run in the output, once Ray has started too.
        """
        if self._prepared is None:
            self._prepared = prepare(self.settings, self.folder, new_run)
            self._new_run = new_run
        return self._prepared

    def run(self, start_pools: Callable[[], Pools]) -> JobResult:
        """Answer every record that has no answer yet.

        ``start_pools`` starts Ray and says what the stages may take of it; a finished run does not call it.
        """
        prepared = self.prepare()
        start, started = time.monotonic(), time.time()
        shape = self._shape(prepared)
        todo = self._unfinished(prepared.plan)
        earlier = None if self._new_run else self.folder.read_json(RUN)
        if not todo and earlier is not None and earlier["state"] == "finished":
            return self._result(prepared.plan, self._committed(prepared.plan), 0, 0.0)
        pools = start_pools() if todo else Pools()
        if earlier is None:
            self.log.discard()  # of a run that --new-run discards; else there is nothing
            todo = self._unfinished(prepared.plan)
            self.folder.save_plan(prepared.plan)
            self._write_run(prepared, shape, "running", started, None)
        before = self._committed(prepared.plan)
        incomplete = sum(self._run_window(window, prepared, shape, pools) for window in todo)
        result = self._result(prepared.plan, before, incomplete, time.monotonic() - start)
        self._write_run(prepared, shape, "finished" if not incomplete else "incomplete", started, result)
        return result

    def _unfinished(self, plan: InputPlan) -> list[int]:
        finished = {} if self._new_run else self.log.finished_windows()
        return [window for window in range(plan.windows) if window not in finished]

    def _run_window(self, window: int, prepared: Prepared, shape: OutputShape, pools: Pools) -> int:
        """Answer or set aside every row of a window; returns how many stay without an answer."""
        plan = prepared.plan
        run = WindowRun(self.settings, pools, plan, window, prepared.context, shape)
        size = plan.window_size(window)
        missing = self._rounds(run)
        if len(missing) == size > 1:
            return size  # nothing at all went through: it is not the records
        if 0 < len(missing) <= max(_ALONE, min(_ALONE_AT_MOST, int(self.settings.error_budget * size))):
            guilty = [row for row in missing.tolist() if self._fails_alone(run, row)]
            self._set_aside(window, plan, guilty)
            missing = self._missing(window, size)
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
        message = "no answer in any shard, at last alone: its process died or failed each time (see the logs of Ray)"
        letters = [
            {
                "id": r.id,
                "stage": "generate",
                "error_type": "NoAnswer",
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
        settings, passed = self.settings, prepared.plan.passed
        more = joined(*([SENTENCE_MIXTURES] if settings.sentences else []), settings.asked)
        return OutputShape(passed, settings.keep_prompt, prints["router"], prints["bank"], more)

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
                "tokens_per_second": round(result.generated_tokens / max(result.seconds, 1e-9), 1),
            }
        self.folder.write_json(RUN, values)
