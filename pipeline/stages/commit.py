"""Commit stage: write the answers and dead letters of each shard through the commit protocol."""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import orjson
import pyarrow as pa

from pipeline.storage.commit.counts import Counts, count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard
from pipeline.storage.store.objects import StoreError
from pipeline.storage.store.redact import masked_error, masking
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.logs import log_worker_event
from pipeline.telemetry.metrics import count_committed

from .output_schema import OutputSchema

COMMITTED = pa.schema([("window", pa.int32()), ("counts", pa.string()), ("refusal", pa.string())])
"""A `Committed` as a row; ``counts`` as JSON."""


@dataclass(frozen=True)
class Committed:
    """The result of a shard for the driver; ``refusal``: why the store refused it, empty if it is committed."""

    window: int
    counts: Counts
    refusal: str = ""

    def table(self) -> pa.Table:
        """Return the result as a table of one `COMMITTED` row."""
        values = [self.window], [orjson.dumps(asdict(self.counts)).decode()], [self.refusal]
        return pa.Table.from_arrays(
            [pa.array(v, f.type) for v, f in zip(values, COMMITTED, strict=True)], schema=COMMITTED
        )

    @classmethod
    def rows(cls, table: pa.Table) -> "Iterator[Committed]":
        """Yield the results of a table of `COMMITTED` rows."""
        for row in table.to_pylist():
            yield cls(**row | {"counts": Counts(**orjson.loads(row["counts"]))})


@dataclass(frozen=True)
class CommitShards:
    """Commits tables of answered and dead rows of one window as shards.

    ``window_rows``: of the input plan. ``attempt``: a name that no other pass has.
    """

    markers: MarkerStore
    schema: OutputSchema
    window_rows: int
    attempt: str
    incidents: Incidents

    def __call__(self, table: pa.Table) -> pa.Table:
        """Commit a shard; return one `COMMITTED` row."""
        start, window = time.monotonic(), table["window"][0].as_py()
        with masking():
            try:
                with self.incidents.recording("commit"):
                    shard = self._commit(table, window)
            except StoreError as error:  # the driver has to know at once: it would refuse other shards too
                return Committed(window, Counts(), masked_error(error)).table()
        count_committed(self.markers.run, shard.counts)
        counts = {"records": shard.counts.data, "dead": shard.counts.dead, "tokens": shard.counts.completion_tokens}
        seconds = round(time.monotonic() - start, 3)
        log_worker_event(
            "shard committed", run=self.markers.run, window=window, shard=shard.name, **counts, seconds=seconds
        )
        return Committed(window, shard.counts).table()

    def _commit(self, table: pa.Table, window: int) -> Shard:
        answered, refused = table.filter(table["dead"].is_null()), table.filter(table["dead"].is_valid())
        data, dead = self.schema.data_table(answered), self.schema.dead_table(refused, window * self.window_rows)
        rows = answered["row"].to_numpy(), refused["row"].to_numpy()
        name = f"{self.markers.shard_prefix(window)}{self.attempt}-{_digest(table['row'].to_numpy())}"
        return commit_shard(self.markers, Shard(name, None, None, *rows, count_rows(data, dead)), data, dead)


def _digest(rows: np.ndarray) -> str:
    """Return a name for rows of a window: a task that is tried again commits the same rows under the same name."""
    return hashlib.blake2b(rows.tobytes(), digest_size=8).hexdigest()
