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
_SHARES = 4  # of an engine in the rows that are left of the last block; a shard is one of them
_BLOCK_BYTES = (
    2**28
)  # of the input's files; records with their tokens, and a sorted copy of them, take several times that


@dataclass(frozen=True)
class Regroup:
    """Cuts blocks of routed records into shards, one mixture after another, and prompts with a common prefix together.

    Blocks have ``block`` records, only the last one of a pass has fewer: it is cut into smaller and smaller shards, so
    that no engine waits for the last one. ``engines``: their number. ``incidents`` knows the speed of the engines.
    """

    limits: ShardLimits
    block: int
    engines: int
    incidents: Incidents

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        """Yield each shard as a table of one `PACKED` row."""
        is_dead = pc.is_valid(table["dead"])
        dead, alive = table.filter(is_dead), table.filter(pc.invert(is_dead))
        size = self._shard_records()
        yield from self._cut(dead, size)  # no engine holds up the error budget
        is_last = table.num_rows < self.block
        for part, records in self._last_parts(alive, size) if is_last else [(alive, size)]:
            yield from self._cut(part, records)

    def _last_parts(self, table: pa.Table, most: int) -> Iterator[tuple[pa.Table, int]]:
        """Yield parts of the last block with the records of their shards: of ``most``, then fewer and fewer.

        A shard is a fixed share of what is left, as in guided self-scheduling (Polychronopoulos and Kuck 1987), but
        half of what is left is cut at a time, so that mixtures stay together.
        """
        while table.num_rows:
            size = min(most, self._within_limits(-(-table.num_rows // (_SHARES * self.engines))))
            rows = -(-table.num_rows // 2) if size > self._within_limits(0) else table.num_rows
            yield table.slice(0, rows), size
            table = table.slice(rows)

    def _cut(self, table: pa.Table, shard_records: int) -> Iterator[pa.Table]:
        limits = replace(self.limits, records=shard_records)
        for window in pc.unique(table["window"]).to_pylist():
            for shard in cut_shards(table.filter(pc.equal(table["window"], window)), limits):
                yield pack(shard)

    def _shard_records(self) -> int:
        speed = self.incidents.records_per_second("generate")
        return self._within_limits(int(speed * SHARD_SECONDS) if speed else _FIRST_RECORDS)

    def _within_limits(self, records: int) -> int:
        return min(self.limits.records, max(_MIN_RECORDS, records))


def block_size(records: int, most: int, plan: InputPlan) -> int:
    """Return the records of each block of a pass but the last, which has fewer, and nearly as many if it can.

    ``records``: of the pass. ``most``: of a block; fewer if records are so long that a task could not hold them.
    """
    fitting = _BLOCK_BYTES * plan.rows // max(1, sum(file.size for file in plan.files))
    blocks = records // min(most, max(_MIN_RECORDS, fitting)) + 1
    return records // blocks + 1


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
