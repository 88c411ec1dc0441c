"""Shuffle stage: regroup routed records into shards, by a plan made once the mixtures of all records are known."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from pipeline.heap import trim_heap

from .shard_plan import ShardLimits, shard_of_rows

# From here to the generating actors, a row of the dataset is one shard, as an Arrow stream: Ray Data splits and merges
# blocks, but never a row.
PACKED = pa.schema([("shard", pa.int32()), ("records", pa.large_binary())])

_MAX_PARTITIONS = 256
_SHARDS_PER_PARTITION = 4
_UNPLANNED = -1  # shard of rows whose block was lost while the plan was made


class Shuffle:
    """Regroups the rows of a window, at most ``rows``, into shards.

    Up to ``task_rows`` rows are planned and cut by one task; more are planned by the driver and shuffled. ``options``:
    Ray options of the tasks.
    """

    def __init__(self, rows: int, limits: ShardLimits, task_rows: int, options: dict[str, Any]) -> None:
        self._rows, self._limits, self._task_rows = rows, limits, task_rows
        self._options: dict[str, Any] = options | {"batch_format": "pyarrow", "fn_args": (limits,)}

    def __call__(self, routed: Any) -> Any:
        """Return a dataset of `PACKED` rows, each in a block of its own.

        Many rows are planned once all are routed, for which the driver needs the index and the mixture of each row, a
        few bytes. Few rows go through one task, and the generating actors start while the others still route.
        """
        if self._rows <= self._task_rows:
            cut = routed.map_batches(cut_shards, batch_size=max(1, self._rows), **self._options)
        else:
            routed = routed.materialize()
            options = self._options | {"fn_args": (ray.put(self._plan(routed)),)}
            trim_heap()
            partitions = max(1, min(_MAX_PARTITIONS, self._rows // (_SHARDS_PER_PARTITION * self._limits.records)))
            numbered = routed.map_batches(_numbered, batch_size=None, **options)
            cut = numbered.repartition(partitions, keys=["shard"]).map_batches(_cut, batch_size=None, **self._options)
        return cut.repartition(target_num_rows_per_block=1)

    def _plan(self, routed: Any) -> np.ndarray:
        """Return the shard of each row, by its index in the window."""
        code_of: dict[str, int] = {}
        codes = np.full(self._rows, _UNPLANNED, np.int32)
        for table in routed.select_columns(["row", "mixture"]).iter_batches(batch_format="pyarrow", batch_size=None):
            mixtures = table["mixture"].combine_chunks().dictionary_encode()
            own = [code_of.setdefault(key, len(code_of)) for key in mixtures.dictionary.to_pylist()]
            rows = table["row"].to_numpy()
            codes = _at_least(codes, int(rows.max(initial=-1)) + 1)
            codes[rows] = np.array(own, np.int32)[mixtures.indices.to_numpy()]
        known = codes != _UNPLANNED
        planned = np.full(len(codes), _UNPLANNED, np.int32)
        planned[known] = shard_of_rows(list(code_of), codes[known], self._limits)
        return planned


class GenerateShards:
    """A generating actor over packed shards: calls ``generator``, built with ``args``, with the table of each shard."""

    def __init__(self, generator: Callable[..., Callable[[pa.Table], pa.Table]], *args: Any) -> None:
        self._answer = generator(*args)

    def __call__(self, shards: pa.Table) -> Iterator[pa.Table]:
        """Yield the generator's result for each shard."""
        for packed in shards["records"].to_pylist():
            yield self._answer(unpack(packed))


def pack(number: int, records: pa.Table) -> pa.Table:
    """Return a shard as a table of one `PACKED` row."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, records.schema) as writer:
        writer.write_table(records)
    columns = [pa.array([number], pa.int32()), pa.array([stream.getvalue().to_pybytes()], pa.large_binary())]
    return pa.Table.from_arrays(columns, schema=PACKED)


def unpack(packed: bytes) -> pa.Table:
    """Return the records of a packed shard."""
    return pa.ipc.open_stream(packed).read_all()


def cut_shards(table: pa.Table, limits: ShardLimits) -> Iterator[pa.Table]:
    """Plan the shards of a table, and yield each as a table of one `PACKED` row."""
    mixtures = table["mixture"].combine_chunks().dictionary_encode()
    shards = shard_of_rows(mixtures.dictionary.to_pylist(), mixtures.indices.to_numpy(), limits)
    return _cut(table.append_column("shard", pa.array(shards)), limits)


def _at_least(codes: np.ndarray, rows: int) -> np.ndarray:
    """Extend the codes to ``rows``: if few rows of a window are missing, their indices exceed their number."""
    added = rows - len(codes)
    return np.concatenate([codes, np.full(added, _UNPLANNED, codes.dtype)]) if added > 0 else codes


def _numbered(table: pa.Table, plan: Any) -> pa.Table:
    shards: np.ndarray = ray.get(plan)
    rows = table["row"].to_numpy()
    numbers = np.full(len(rows), _UNPLANNED, np.int32)
    known = rows < len(shards)
    numbers[known] = shards[rows[known]]
    return table.append_column("shard", pa.array(numbers))


def _cut(table: pa.Table, limits: ShardLimits) -> Iterator[pa.Table]:
    """Yield the shards of a partition, with the rows of one mixture together."""
    table = table.sort_by([("shard", "ascending"), ("mixture", "ascending")])
    numbers = table["shard"].to_numpy()
    starts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist()] if len(numbers) else []
    for start, stop in zip(starts, [*starts[1:], len(numbers)], strict=False):
        records = table.slice(start, stop - start).drop_columns("shard")
        for first in range(0, records.num_rows, limits.records):  # a shard has more only if it is unplanned
            yield pack(int(numbers[start]), records.slice(first, limits.records))
