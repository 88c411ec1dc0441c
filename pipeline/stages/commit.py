"""Commit stage: the Datasink that writes what a shard's rows became, through the commit protocol."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from ray.data import Datasink

from pipeline.records import DATA, DEAD, PASSED, PROVENANCE, Mixture, Record, joined
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.log import CommitLog
from pipeline.storage.commit.markers import Shard
from pipeline.storage.input.columns import record_text
from pipeline.storage.store.redact import masking
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.logs import tell_here
from pipeline.telemetry.metrics import count_committed

from .tables import prompts_of


class OutputShape:
    """The schema of the data files: fixed columns, passed-through ones, provenance.

    ``more``: further columns that the generate stage makes.
    """

    def __init__(
        self, passed: pa.Schema, keep_prompt: bool, router: str, bank: str, more: pa.Schema | None = None
    ) -> None:
        extra = pa.schema([("prompt", pa.string())] if keep_prompt else [])
        extra = joined(extra, more or pa.schema([]))
        self.passed = output_names(passed, {*DATA.names, *PROVENANCE.names, *extra.names})
        renamed = pa.schema([f.with_name(self.passed[f.name]) for f in passed])
        self.schema = joined(DATA, extra, renamed, PROVENANCE)
        self.keep_prompt = keep_prompt
        self.provenance = (router, bank)

    def data(self, table: pa.Table) -> pa.Table:
        """Answered rows of a generated table as the output has them."""
        mixtures = [Mixture.parse(key) for key in table["mixture"].to_pylist()]
        router, bank = self.provenance
        made: dict[str, Any] = {
            "adapters": [m.adapters for m in mixtures],
            "weights": [m.weights for m in mixtures],
            "router_fingerprint": [router] * table.num_rows,
            "bank_fingerprint": [bank] * table.num_rows,
        }
        if self.keep_prompt:  # else `prompt` may be a passed-through column
            made["prompt"] = pc.coalesce(table["prompt"], table["messages"])
        source = {new: PASSED + old for old, new in self.passed.items()}
        arrays = [
            pa.array(made[f.name], f.type) if f.name in made else table[source.get(f.name, f.name)] for f in self.schema
        ]
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def dead(self, table: pa.Table, first_row: int) -> pa.Table:
        """Dead rows of a generated table as dead letters. ``first_row``: of the window, in the input."""
        passed = table.select([PASSED + name for name in self.passed]).rename_columns(list(self.passed))
        kept = [{k: v for k, v in row.items() if v is not None} for row in passed.to_pylist()]
        records = [
            record_text(Record(0, identity, prompt, values, raw))
            for raw, identity, prompt, values in zip(
                table["raw"].to_pylist(),
                table["id"].to_pylist(),
                prompts_of(table),
                kept or [{}] * table.num_rows,
                strict=True,
            )
        ]
        columns = [table[name] for name in ("id", "dead_stage", "dead_type", "dead_message")]
        rows = pc.add(table["row"], first_row)
        return pa.Table.from_arrays([*columns, pa.array(records, pa.string()), rows], schema=DEAD)


def output_names(passed: pa.Schema, taken: set[str]) -> dict[str, str]:
    """Output names of the passed-through columns: their own, or `input_<name>` where the output uses that itself."""
    names = {f.name: f.name for f in passed if f.name not in taken}
    for f in passed:
        if f.name in taken:
            name = f"input_{f.name}"
            while name in taken or name in names.values():
                name = f"input_{name}"
            names[f.name] = name
    return {f.name: names[f.name] for f in passed}


@dataclass(frozen=True)
class Place:
    """What a shard belongs to: a window, whose first row is ``first_row`` of the input, and one run of its graph."""

    window: int
    first_row: int
    attempt: str


class CommitSink(Datasink[dict[str, Any]]):  # type: ignore[misc]
    """Commits the rows of each write task as one shard; see `storage.commit.log`."""

    def __init__(self, log: CommitLog, shape: OutputShape, place: Place, incidents: Incidents | None = None) -> None:
        self.log = log
        self.shape = shape
        self.place = place
        self.run = log.run or ""
        self.incidents = incidents or Incidents()

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> dict[str, Any]:
        """Write one shard."""
        start = time.monotonic()
        with self.incidents.telling("commit"):
            shard = self._commit(pa.concat_tables(blocks), ctx.task_idx)
        count_committed(self.run, shard.counts)
        counts = {"records": shard.counts.data, "dead": shard.counts.dead, "tokens": shard.counts.completion_tokens}
        seconds = round(time.monotonic() - start, 3)
        tell_here(
            "shard committed", run=self.run, window=self.place.window, shard=shard.name, **counts, seconds=seconds
        )
        return {}  # Ray Data keeps what the writers of a window return

    def _commit(self, table: pa.Table, task: int) -> Shard:
        alive = table["dead_stage"].is_null()
        answered, refused = table.filter(alive), table.filter(table["dead_stage"].is_valid())
        data, dead = self.shape.data(answered), self.shape.dead(refused, self.place.first_row)
        name = f"{self.log.prefix(self.place.window)}{self.place.attempt}-{task:06d}"
        rows = answered["row"].to_numpy(), refused["row"].to_numpy()
        with masking():
            return self.log.commit(Shard(name, None, None, *rows, count_rows(data, dead)), data, dead)
