"""Commit stage: write the answers and dead letters of each shard through the commit protocol."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from ray.data import Datasink

from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard
from pipeline.storage.store.redact import masking
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.logs import log_worker_event
from pipeline.telemetry.metrics import count_committed

from .output_schema import OutputSchema


@dataclass(frozen=True)
class WindowAttempt:
    """One execution of a window's dataset. ``first_row``: of the window, in the whole input; ``name``: unique."""

    window: int
    first_row: int
    name: str


class CommitSink(Datasink[dict[str, Any]]):  # type: ignore[misc]
    """Commits the rows of each write task as one shard; see `storage.commit.window`."""

    def __init__(
        self, markers: MarkerStore, schema: OutputSchema, attempt: WindowAttempt, incidents: Incidents | None = None
    ) -> None:
        self.markers = markers
        self.schema = schema
        self.attempt = attempt
        self.incidents = incidents or Incidents()

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> dict[str, Any]:
        """Write one shard."""
        start = time.monotonic()
        with self.incidents.recording("commit"):
            shard = self._commit(pa.concat_tables(blocks), ctx.task_idx)
        count_committed(self.markers.run, shard.counts)
        counts = {"records": shard.counts.data, "dead": shard.counts.dead, "tokens": shard.counts.completion_tokens}
        seconds = round(time.monotonic() - start, 3)
        window = self.attempt.window
        log_worker_event(
            "shard committed", run=self.markers.run, window=window, shard=shard.name, **counts, seconds=seconds
        )
        return {}  # Ray Data keeps what the writers of a window return

    def _commit(self, table: pa.Table, task: int) -> Shard:
        answered, refused = table.filter(table["dead"].is_null()), table.filter(table["dead"].is_valid())
        data, dead = self.schema.data_table(answered), self.schema.dead_table(refused, self.attempt.first_row)
        name = f"{self.markers.shard_prefix(self.attempt.window)}{self.attempt.name}-{task:06d}"
        rows = answered["row"].to_numpy(), refused["row"].to_numpy()
        with masking():
            return commit_shard(self.markers, Shard(name, None, None, *rows, count_rows(data, dead)), data, dead)
