"""Commit a window: its shards one by one, then one marker that closes it.

1. A write task commits a shard: at most one data and one dead file, then a *shard marker* that names the files and the
   rows in them. A task that is tried again finds its marker, or writes the shard again.
2. Once every row of the window is in a shard, the driver finishes it: rows in two shards are cut out of the second one,
   small files are merged, and one *window marker* names all files. From then on the window's shard markers mean
   nothing, so that a late writer of a killed driver changes nothing.
3. What the window marker does not name stays until the end of the job, for readers that opened the shards' files, and
   is removed then (`storage.commit.orphans`): files first, shard markers last.
4. Dead letters that are retried later give the window a new marker (`storage.commit.replace`).

Markers are created once: of two writers of one marker, the second one takes what the first one wrote.
"""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.store.objects import list_sizes, raises_store_error

from .counts import count_rows
from .marker_store import MarkerStore
from .markers import Rows, Shard, WindowFiles, merge_shards, window_marker, without_overlap
from .output_files import KINDS

_FILES_PER_ROW_GROUP = 16


@raises_store_error()
def commit_shard(store: MarkerStore, shard: Shard, data: pa.Table, dead: pa.Table) -> Shard:
    """Write the files of a shard, then its marker. A shard that has a marker is returned as it is committed.

    ``data`` and ``dead`` hold the rows of ``shard``; an empty table makes no file. Raises `StoreError` if the store
    refuses a write for good.
    """
    committed = store.find_shard(shard.name)
    if committed is not None:
        return committed
    data_file = store.write_table("data", shard.name, data)
    dead_file = store.write_table("dead", shard.name, dead)
    return store.create_shard(replace(shard, data=data_file, dead=dead_file))


@raises_store_error()
def finish_window(store: MarkerStore, window: int, rows: int, file_bytes: int = 0) -> WindowFiles:
    """Close a window of ``rows`` rows: write its marker over its shards.

    ``file_bytes``: merge small files up to this size; 0 keeps the shards' files. If the shards do not hold all rows, no
    marker is written: either another driver finished the window a moment ago, or the store did not list every shard,
    which raises `FileNotFoundError`.
    """
    files = merge_shards(cut_overlap(store, window))
    if files.counts.rows == rows:
        if file_bytes:
            data, dead = (_merge_files(store, window, file_bytes, kind, getattr(files, kind)) for kind in KINDS)
            files = WindowFiles(data, dead, files.counts)
        if store.create_window(window_marker(window, store.run), files):
            return files
    (committed,) = store.read_windows([window_marker(window, store.run)])  # another driver finished the window
    return committed


def cut_overlap(store: MarkerStore, window: int) -> Iterator[Shard]:
    """The shards of a window, each with only the rows that no earlier shard holds; a cut shard gets new files."""
    return (_cut(store, shard, rows) for shard, rows in without_overlap(store.shards(window)))


def _cut(store: MarkerStore, shard: Shard, keep: Rows) -> Shard:
    """The shard with only the rows ``keep``: itself, or a copy with files of its own."""
    if len(keep) == len(shard.rows):
        return shard
    keep_data, keep_dead = np.isin(shard.data_rows, keep), np.isin(shard.dead_rows, keep)
    data = store.read_table(shard.data).filter(pa.array(keep_data)) if shard.data else pa.table({})
    dead = store.read_table(shard.dead).filter(pa.array(keep_dead)) if shard.dead else pa.table({})
    return replace(
        shard,
        data=store.write_table("data", f"{shard.name}-cut", data),
        dead=store.write_table("dead", f"{shard.name}-cut", dead),
        data_rows=shard.data_rows[keep_data],
        dead_rows=shard.dead_rows[keep_dead],
        counts=count_rows(data, dead),
    )


def _merge_files(store: MarkerStore, window: int, file_bytes: int, kind: str, paths: Sequence[str]) -> list[str]:
    """Merge files into files of at most ``file_bytes``; until a marker names them, they are orphans."""
    prefix = store.shard_prefix(window)
    size_of = {f"{kind}/{name}": size for name, size in list_sizes(store.fs, store.path(kind), prefix).items()}
    return [
        group[0] if len(group) == 1 else store.write_file(kind, f"{prefix}merged", _merge_tables(store.contents(group)))
        for group in _group_files(paths, size_of, file_bytes)
    ]


def _group_files(paths: Sequence[str], size_of: Mapping[str, int], max_bytes: int) -> Iterator[list[str]]:
    """Consecutive files in groups of at most ``max_bytes``; a larger file is a group of its own."""
    group: list[str] = []
    group_bytes = 0
    for path in paths:
        size = size_of.get(path, 0)
        if group and group_bytes + size > max_bytes:
            yield group
            group, group_bytes = [], 0
        group.append(path)
        group_bytes += size
    if group:
        yield group


def _merge_tables(files: Iterable[bytes]) -> bytes:
    """One Parquet file with the rows of one or more files of the same schema, 16 files to a row group."""
    buffer = io.BytesIO()
    writer: pq.ParquetWriter | None = None
    # Parsed in this thread alone: each thread that parses keeps some of Arrow's memory.
    tables = (pq.ParquetFile(io.BytesIO(content)).read(use_threads=False) for content in files)
    while batch := list(islice(tables, _FILES_PER_ROW_GROUP)):
        table = pa.concat_tables(batch)
        writer = writer or pq.ParquetWriter(buffer, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None  # there is at least one file
    writer.close()
    return buffer.getvalue()
