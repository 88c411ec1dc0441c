"""Small files of a finished window joined into larger ones: a shard is what a failure may lose, a file what is read."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.store.objects import sizes

from .log import KINDS, CommitLog
from .markers import WindowFiles

_A_GROUP = 16  # files whose rows become a row group


def merge_files(log: CommitLog, window: int, target: int, files: WindowFiles) -> WindowFiles:
    """The files of a window joined into files of at most ``target`` bytes; 0: as they are.

    The joined files count once a marker names them; killed before, they are swept.
    """
    if not target:
        return files
    data, dead = (_joined(log, window, target, kind, getattr(files, kind)) for kind in KINDS)
    return WindowFiles(data, dead, files.counts)


def _joined(log: CommitLog, window: int, target: int, kind: str, paths: Sequence[str]) -> list[str]:
    prefix = log.prefix(window)
    held = {f"{kind}/{name}": size for name, size in sizes(log.fs, log.path(kind), prefix).items()}
    return [
        group[0] if len(group) == 1 else log.write_file(kind, f"{prefix}joined", joined_file(log.contents(group)))
        for group in groups(paths, held, target)
    ]


def groups(paths: Sequence[str], sizes: Mapping[str, int], target: int) -> Iterator[list[str]]:
    """Files that become one, in order: together at most ``target`` bytes, unless one alone is larger."""
    group: list[str] = []
    held = 0
    for path in paths:
        size = sizes.get(path, 0)
        if group and held + size > target:
            yield group
            group, held = [], 0
        group.append(path)
        held += size
    if group:
        yield group


def joined_file(files: Iterable[bytes]) -> bytes:
    """One Parquet file with the rows of several of the same schema, a row group for some thousand rows."""
    buffer = io.BytesIO()
    writer: pq.ParquetWriter | None = None
    # Parsed in this thread alone: each one that does so keeps memory of Arrow's.
    tables = (pq.ParquetFile(io.BytesIO(content)).read(use_threads=False) for content in files)
    while some := list(islice(tables, _A_GROUP)):
        table = pa.concat_tables(some)
        writer = writer or pq.ParquetWriter(buffer, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None  # there is a file at least
    writer.close()
    return buffer.getvalue()
