"""Commit a window: its shards one by one, then one marker that closes it.

1. A write task commits a shard: at most one data and one dead file, then a *shard marker* that names the files and the
   rows in them. A task that is tried again finds its marker, or writes the shard again.
2. Once every row of the window is in a shard, the driver finishes it: rows in two shards are cut out of the second one,
   small files are merged, and one *window marker* names all files. From then on the window's shard markers mean
   nothing, so that a late writer of a killed driver changes nothing.
3. What the window marker does not name is removed (`storage.commit.orphans`): files first, shard markers last. What is
   removed was listed before the marker was written, so that a driver that slept in between removes nothing newer.
4. Dead letters that are retried later give the window a new marker (`storage.commit.replace`).

Markers are created once: of two writers of one marker, the second one takes what the first one wrote.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa

from pipeline.storage.store.objects import raises_store_error

from .compaction import merge_files
from .counts import count_rows
from .marker_store import MarkerStore
from .markers import Rows, Shard, WindowFiles, merge_shards, window_marker, without_overlap
from .orphans import sweep_window
from .output_files import KINDS


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
    """Close a window of ``rows`` rows: write its marker over its shards, and sweep what the marker does not name.

    ``file_bytes``: merge small files up to this size; 0 keeps the shards' files. If the shards do not hold all rows, no
    marker is written: either another driver finished the window a moment ago, or the store did not list every shard,
    which raises `FileNotFoundError`.
    """
    files = merge_shards(cut_overlap(store, window))
    if files.counts.data + files.counts.dead != rows:
        return sweep_window(store, window, store.list_window(window))
    files = merge_files(store, window, file_bytes, files)
    listed = store.list_window(window)
    store.create_window(window_marker(window, store.run), files)  # if it exists, another driver finished the window
    return sweep_window(store, window, listed)


def cut_overlap(store: MarkerStore, window: int) -> Iterator[Shard]:
    """The shards of a window, each with only the rows that no earlier shard holds; a cut shard gets new files."""
    return (_cut(store, shard, rows) for shard, rows in without_overlap(store.shards(window)))


def _cut(store: MarkerStore, shard: Shard, keep: Rows) -> Shard:
    """The shard with only the rows ``keep``: itself, or a copy with files of its own."""
    if len(keep) == len(shard.rows):
        return shard
    tables = {kind: _kept_rows(store, shard, kind, keep) for kind in KINDS}
    files = {kind: store.write_table(kind, f"{shard.name}-cut", table) for kind, table in tables.items()}
    return replace(
        shard,
        data=files["data"],
        dead=files["dead"],
        data_rows=shard.data_rows[np.isin(shard.data_rows, keep)],
        dead_rows=shard.dead_rows[np.isin(shard.dead_rows, keep)],
        counts=count_rows(tables["data"], tables["dead"]),
    )


def _kept_rows(store: MarkerStore, shard: Shard, kind: str, keep: Rows) -> pa.Table:
    path, rows = (shard.data, shard.data_rows) if kind == "data" else (shard.dead, shard.dead_rows)
    if path is None:
        return pa.table({})
    return store.read_table(path).filter(pa.array(np.isin(rows, keep)))
