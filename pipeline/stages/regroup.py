"""Regroup stage: cut each block of routed records into shards of one window, by mixture."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster.resources import Pools
from pipeline.cluster.sizing import threads_here
from pipeline.storage.input.plan import InputPlan
from pipeline.telemetry.incidents import Incidents

from .shard_plan import ShardLimits, shard_of_rows

if TYPE_CHECKING:  # tasks of this stage must not load torch for it
    from pipeline.settings import JobSettings

# From here to the generating actors, a row of the dataset is one shard, as an Arrow stream: Ray Data splits and merges
# blocks, but never a row.
PACKED = pa.schema([("records", pa.large_binary())])

SHARD_SECONDS = 20.0  # of an engine's work in a shard, at the speed measured so far
_FIRST_RECORDS = 512  # of a shard while no speed is known
_MIN_RECORDS = 64  # of a shard that is made smaller: about a batch of an engine
_PREFIX_TOKENS = 256  # by which prompts are sorted
_TAIL_SHARDS = 4  # that each engine gets of the last block, at least
_TAIL_PARTS = 4  # of each of the last shards: an engine that still has several should not keep the others waiting
_BLOCK_BYTES = (
    2**28
)  # of the input's files; records with their tokens, and a sorted copy of them, take several times that


@dataclass(frozen=True)
class Regroup:
    """Cuts blocks of routed records into shards, one mixture after another, and prompts with a common prefix together.

    ``records``: of the whole pass; the last ``block`` of them are cut into smaller shards, so that no engine waits for
    the last one. ``engines``: their number. ``incidents`` knows the speed of the engines.
    """

    limits: ShardLimits
    records: int
    block: int
    engines: int
    incidents: Incidents

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield each shard as a table of one `PACKED` row."""
        is_dead = pc.is_valid(table["dead"])
        dead, alive = table.filter(is_dead), table.filter(pc.invert(is_dead))
        is_last = table.num_rows < self.block or self.records <= self.block  # blocks are full until the records end
        size = self._shard_records(table.num_rows if is_last else None)
        tail = min(alive.num_rows, _TAIL_SHARDS * self.engines * size // 2) if is_last else 0
        head = alive.num_rows - tail
        yield from self._cut(dead, size)  # no engine holds up the error budget
        yield from self._cut(alive.slice(0, head), size)
        yield from self._cut(alive.slice(head), self._within_limits(size // _TAIL_PARTS))

    def _cut(self, table: pa.Table, shard_records: int) -> Iterator[pa.Table]:
        limits = replace(self.limits, records=shard_records)
        for window in pc.unique(table["window"]).to_pylist():
            for shard in cut_shards(table.filter(pc.equal(table["window"], window)), limits):
                yield pack(shard)

    def _shard_records(self, last_rows: int | None) -> int:
        """Return the records of a shard. ``last_rows``: of the last block, None if others follow."""
        speed = self.incidents.records_per_second("generate")
        wanted = int(speed * SHARD_SECONDS) if speed else _FIRST_RECORDS
        if last_rows is not None:
            wanted = min(wanted, -(-last_rows // (_TAIL_SHARDS * self.engines)))
        return self._within_limits(wanted)

    def _within_limits(self, records: int) -> int:
        return min(self.limits.records, max(_MIN_RECORDS, records))


def fitting_records(plan: InputPlan) -> int:
    """Return how many records of the input's average length a task can regroup together."""
    return max(_MIN_RECORDS, _BLOCK_BYTES * plan.rows // max(1, sum(file.size for file in plan.files)))


class GenerateShards:
    """A generating actor over packed shards, with the threads of its own node.

    ``generator``: a class with the arguments and results of `GenerateRecords`.
    """

    def __init__(
        self, generator: type, settings: "JobSettings", device: str, pools: Pools, incidents: Incidents
    ) -> None:
        threads = threads_here(pools)
        incidents.add_threads(threads)
        self._answer = generator(settings, device, threads, incidents)

    def __call__(self, shards: pa.Table) -> Iterator[pa.Table]:
        """Yield the generator's result for each shard."""
        for packed in shards["records"].to_pylist():
            yield self._answer(unpack(packed))


def cut_shards(table: pa.Table, limits: ShardLimits) -> Iterator[pa.Table]:
    """Plan the shards of routed records of one window, and yield them one by one."""
    table = table.take(_by_prefix(table))
    mixtures = table["mixture"].combine_chunks().dictionary_encode()
    shards = shard_of_rows(mixtures.dictionary.to_pylist(), mixtures.indices.to_numpy(), limits)
    order = np.lexsort((mixtures.indices.to_numpy(), shards))  # stable: prefixes stay together within a mixture
    bounds = np.flatnonzero(np.diff(shards[order], prepend=-1, append=-1))
    for start, stop in pairwise(bounds):
        yield table.take(order[start:stop])


def _by_prefix(table: pa.Table) -> np.ndarray:
    """Return the order of the rows by their prompts' tokens; the engine computes a common prefix of neighbours once."""
    tokens = table["tokens"].combine_chunks()
    starts, stops = tokens.offsets.to_numpy()[:-1], tokens.offsets.to_numpy()[1:]
    stops = np.minimum(stops, starts + _PREFIX_TOKENS)
    big_endian = tokens.values.to_numpy().astype(">i4").tobytes()  # bytes compare as their token ids do
    keys = [big_endian[4 * start : 4 * stop] for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def pack(records: pa.Table) -> pa.Table:
    """Return a shard as a table of one `PACKED` row."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, records.schema) as writer:
        writer.write_table(records)
    return pa.Table.from_arrays([pa.array([stream.getvalue().to_pybytes()], pa.large_binary())], schema=PACKED)


def unpack(packed: bytes) -> pa.Table:
    """Return the records of a packed shard."""
    return pa.ipc.open_stream(packed).read_all()
