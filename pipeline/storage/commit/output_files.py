"""Read and write whole files of one output folder."""

import io
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.store.bulk import read_each
from pipeline.storage.store.objects import put
from pipeline.storage.store.urls import open_url

KINDS = ("data", "dead")  # the folders of the output's rows


@dataclass(frozen=True)
class OutputFiles:
    """The files of an output folder. Only the URL is pickled: each process opens the store with its own credentials."""

    url: str
    fs: fsspec.AbstractFileSystem = field(init=False, repr=False, compare=False)
    root: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        fs, root = open_url(self.url)
        object.__setattr__(self, "fs", fs)
        object.__setattr__(self, "root", root.rstrip("/"))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url,)

    def path(self, *parts: str) -> str:
        """The path of an object, to be used with ``fs``."""
        return "/".join((self.root, *parts))

    def content(self, path: str) -> bytes:
        """The bytes of an object, by its path below the root; `FileNotFoundError` if there is none."""
        return next(self.contents([path]))

    def contents(self, paths: Iterable[str]) -> Iterator[bytes]:
        """The `content` of each path, in order; a remote store is asked for several at a time."""
        full_paths = [self.path(path) for path in paths]
        for path, content in zip(full_paths, read_each(self.fs, full_paths), strict=True):
            if content is None:
                raise FileNotFoundError(path)
            yield content

    def read_table(self, path: str) -> pa.Table:
        """Read a data or dead file, by the path that a marker gives."""
        return pq.read_table(io.BytesIO(self.content(path)))

    def write_table(self, kind: str, name: str, table: pa.Table) -> str | None:
        """Write a ``data`` or ``dead`` file of a shard; returns its path for a marker, None for an empty table."""
        if table.num_rows == 0:
            return None
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return self.write_file(kind, name, buffer.getvalue())

    def write_file(self, kind: str, name: str, content: bytes) -> str:
        """Write a Parquet file under a unique name, so that nobody rewrites it; returns its path for a marker."""
        path = f"{kind}/{name}-{uuid.uuid4().hex[:8]}.parquet"
        put(self.fs, self.path(path), content)
        return path
