"""The files of one output folder."""

import io
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.store.bulk import read_each
from pipeline.storage.store.objects import put
from pipeline.storage.store.urls import open_url


class OutputFiles:
    """Reads and writes whole files of an output folder; travels to tasks as its URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connect()

    def _connect(self) -> None:
        self.fs: fsspec.AbstractFileSystem
        self.fs, root = open_url(self.url)
        self.root = root.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.url = state["url"]
        self._connect()

    def read_table(self, path: str) -> pa.Table:
        """A data or dead file, by the path that a marker gives."""
        return pq.read_table(io.BytesIO(self.content(path)))

    def write_table(self, kind: str, name: str, table: pa.Table) -> str | None:
        """Write a ``data`` or ``dead`` file of a shard; its path for a marker, None for a table without rows."""
        if table.num_rows == 0:
            return None
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        return self.write_file(kind, name, buffer.getvalue())

    def write_file(self, kind: str, name: str, content: bytes) -> str:
        """Write a file of a shard whole; its path for a marker."""
        # A name of its own for each try: should two writers of one shard live at once, each marker has its own files.
        path = f"{kind}/{name}-{uuid.uuid4().hex[:8]}.parquet"
        put(self.fs, self.path(path), content)
        return path

    def content(self, path: str) -> bytes:
        """The bytes of an object of the output; `FileNotFoundError` where there is none."""
        return next(self.contents([path]))

    def contents(self, paths: Iterable[str]) -> Iterator[bytes]:
        """`content` of each of many objects, in order; of a store several are read at a time."""
        whole = [self.path(path) for path in paths]
        for path, content in zip(whole, read_each(self.fs, whole), strict=True):
            if content is None:
                raise FileNotFoundError(path)
            yield content

    def path(self, *parts: str) -> str:
        """The path of an object."""
        return "/".join((self.root, *parts))
