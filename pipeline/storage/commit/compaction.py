"""Merge the small files of a finished window: a failure loses a shard, so shards are smaller than a reader wants."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.store.objects import list_sizes

from .marker_store import MarkerStore
from .markers import WindowFiles
from .output_files import KINDS

_FILES_PER_ROW_GROUP = 16


def merge_files(store: MarkerStore, window: int, file_bytes: int, files: WindowFiles) -> WindowFiles:
    """The files of a window merged into files of at most ``file_bytes``; 0 returns them unchanged.

    Merged files count only once a marker names them; if the driver is killed before, they are orphans.
    """
    if not file_bytes:
        return files
    data, dead = (_merge_kind(store, window, file_bytes, kind, getattr(files, kind)) for kind in KINDS)
    return WindowFiles(data, dead, files.counts)


def _merge_kind(store: MarkerStore, window: int, file_bytes: int, kind: str, paths: Sequence[str]) -> list[str]:
    prefix = store.shard_prefix(window)
    size_of = {f"{kind}/{name}": size for name, size in list_sizes(store.fs, store.path(kind), prefix).items()}
    return [
        group[0] if len(group) == 1 else store.write_file(kind, f"{prefix}merged", merge_tables(store.contents(group)))
        for group in group_files(paths, size_of, file_bytes)
    ]


def group_files(paths: Sequence[str], size_of: Mapping[str, int], max_bytes: int) -> Iterator[list[str]]:
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


def merge_tables(files: Iterable[bytes]) -> bytes:
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
