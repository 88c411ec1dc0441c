"""Helpers of the storage tests: folders in memory, input files of each format, what a user error must look like."""

import bz2
import csv
import gzip
import io
import json
import lzma
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError

MEMORY = fsspec.filesystem("memory")
SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".json.zst", ".csv", ".csv.gz", ".csv.bz2", ".parquet", ".arrow")


def _by_arrow(codec: str) -> Callable[[bytes], bytes]:
    def compress(content: bytes) -> bytes:
        with pa.CompressedOutputStream(sink := pa.BufferOutputStream(), codec) as stream:
            stream.write(content)
        return bytes(sink.getvalue())

    return compress


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": _by_arrow("zstd"),
    ".lz4": _by_arrow("lz4"),
}


def memory_url() -> str:
    """A fresh folder of fsspec's file system in memory."""
    return f"memory://{uuid.uuid4().hex}"


def write_file(url: str, content: bytes) -> str:
    """Write a file; returns its path in the file system of ``url``."""
    fs, path = fsspec.url_to_fs(url)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(path, content)
    return str(path)


def encoded(rows: list[dict[str, Any]], suffix: str, group: int = 3) -> bytes:
    """Rows (at least one, all with the same columns) as the content of a file of a format."""
    if suffix == ".parquet":
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=group)
        return buffer.getvalue()
    if suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(buffer := io.BytesIO(), table.schema) as stream:
            stream.write_table(table, max_chunksize=group)
        return buffer.getvalue()
    if "json" in suffix:
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue().encode()
    return compressed(content, suffix)


def compressed(content: bytes, suffix: str) -> bytes:
    """The content, compressed as the end of a file's name says."""
    return next((compress for end, compress in COMPRESS.items() if suffix.endswith(end)), bytes)(content)


@contextmanager
def user_error(*named: str) -> Iterator[None]:
    """Expect a `UserError` of one line that names all of ``named``."""
    with pytest.raises(UserError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [text for text in named if text not in message] == []
