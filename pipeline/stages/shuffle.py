"""Shuffle stage: routed records become shards, by a plan that is made when the mixtures of all are known."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipeline.engine.serving.heap import give_back_freed_memory

from .shard_plan import ShardLimits, shard_of_rows

# From here to the generating actors one row of a dataset is one shard, as an Arrow stream: Ray Data cuts and joins
# blocks as their bytes suit it, but never a row.
PACKED = pa.schema([("shard", pa.int32()), ("records", pa.large_binary())])

_MOST_PARTITIONS = 256
_SHARDS_A_PARTITION = 4
_UNPLANNED = -1  # rows whose block was lost while the plan was made


class Shuffle:
    """Regroups the ``rows`` rows of a window, or fewer, into shards.

    ``at_once``: so many rows are planned and cut by one task; more are planned by the driver and shuffled. ``options``:
    of the tasks.
    """

    def __init__(self, rows: int, limits: ShardLimits, at_once: int, options: dict[str, Any]) -> None:
        self._rows, self._limits, self._at_once = rows, limits, at_once
        self._options: dict[str, Any] = options | {"batch_format": "pyarrow", "fn_args": (limits,)}

    def __call__(self, routed: Any) -> Any:
        """A dataset of `PACKED` rows, each a block of its own.

        The shards of many rows are known when all are routed: the driver then needs the place and the mixture of each,
        some bytes. Few rows go through one task, and the generating actors start beside the routing ones.
        """
        if self._rows <= self._at_once:
            cut = routed.map_batches(cut_shards, batch_size=max(1, self._rows), **self._options)
        else:
            routed = routed.materialize()
            options = self._options | {"fn_args": (ray.put(self._plan(routed)),)}
            give_back_freed_memory()
            partitions = max(1, min(_MOST_PARTITIONS, self._rows // (_SHARDS_A_PARTITION * self._limits.records)))
            numbered = routed.map_batches(_numbered, batch_size=None, **options)
            cut = numbered.repartition(partitions, keys=["shard"]).map_batches(_cut, batch_size=None, **self._options)
        return cut.repartition(target_num_rows_per_block=1)

    def _plan(self, routed: Any) -> np.ndarray:
        """The shard of each row, by its place in the window."""
        code_of: dict[str, int] = {}
        codes = np.full(self._rows, _UNPLANNED, np.int32)
        for table in routed.select_columns(["row", "mixture"]).iter_batches(batch_format="pyarrow", batch_size=None):
            mixtures = table["mixture"].combine_chunks().dictionary_encode()
            own = [code_of.setdefault(key, len(code_of)) for key in mixtures.dictionary.to_pylist()]
            rows = table["row"].to_numpy()
            codes = _as_long(codes, int(rows.max(initial=-1)) + 1)
            codes[rows] = np.array(own, np.int32)[mixtures.indices.to_numpy()]
        known = codes != _UNPLANNED
        planned = np.full(len(codes), _UNPLANNED, np.int32)
        planned[known] = shard_of_rows(list(code_of), codes[known], self._limits)
        return planned


class GenerateShards:
    """A generating actor over packed shards: ``generator``, built with ``args`` and called with tables of records."""

    def __init__(self, generator: Callable[..., Callable[[pa.Table], pa.Table]], *args: Any) -> None:
        self._answer = generator(*args)

    def __call__(self, shards: pa.Table) -> Iterator[pa.Table]:
        """What the generator makes of each shard."""
        for packed in shards["records"].to_pylist():
            yield self._answer(unpack(packed))


def pack(number: int, records: pa.Table) -> pa.Table:
    """A shard as a table of one `PACKED` row."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, records.schema) as writer:
        writer.write_table(records)
    columns = [pa.array([number], pa.int32()), pa.array([stream.getvalue().to_pybytes()], pa.large_binary())]
    return pa.Table.from_arrays(columns, schema=PACKED)


def unpack(packed: bytes) -> pa.Table:
    """The records of a shard."""
    return pa.ipc.open_stream(packed).read_all()


def cut_shards(table: pa.Table, limits: ShardLimits) -> Iterator[pa.Table]:
    """The shards of all rows there are, each a table of one `PACKED` row."""
    mixtures = table["mixture"].combine_chunks().dictionary_encode()
    shards = shard_of_rows(mixtures.dictionary.to_pylist(), mixtures.indices.to_numpy(), limits)
    return _cut(table.append_column("shard", pa.array(shards)), limits)


def _as_long(codes: np.ndarray, rows: int) -> np.ndarray:
    """Codes of so many rows at least: where few of a window are missing, their places are beyond their number."""
    more = rows - len(codes)
    return np.concatenate([codes, np.full(more, _UNPLANNED, codes.dtype)]) if more > 0 else codes


def _numbered(table: pa.Table, plan: Any) -> pa.Table:
    shards: np.ndarray = ray.get(plan)
    rows = table["row"].to_numpy()
    numbers = np.full(len(rows), _UNPLANNED, np.int32)
    known = rows < len(shards)
    numbers[known] = shards[rows[known]]
    return table.append_column("shard", pa.array(numbers))


def _cut(table: pa.Table, limits: ShardLimits) -> Iterator[pa.Table]:
    """The shards of a partition, in each of them the rows of one mixture together."""
    table = table.sort_by([("shard", "ascending"), ("mixture", "ascending")])
    numbers = table["shard"].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()] if len(numbers) else []
    for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=False):
        records = table.slice(start, stop - start).drop_columns("shard")
        for first in range(0, records.num_rows, limits.records):  # more only among those that no plan knew
            yield pack(int(numbers[start]), records.slice(first, limits.records))
