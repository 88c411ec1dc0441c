"""Arrow IPC streams, as Hugging Face `datasets` saves them (`save_to_disk`). Reading can start at any record batch.

A few kilobytes of a compressed batch may unpack to gigabytes, so its size is read from its message first. The message
is a FlatBuffer (`Message.fbs` of the Arrow format): a table starts with the distance back to its vtable, which holds
the offsets of its fields. A compressed buffer starts with its unpacked size in bytes, or -1 if it is not compressed.
"""

import struct

import fsspec
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, user_errors

from .base import FILE_START, Format, LocatedRows, SeekPoint
from .parquet import check_schema, rows_of

_CONTINUATION = 0xFFFFFFFF
_HEADER, _BUFFERS, _COMPRESSION = 2, 2, 3  # fields of Message and of RecordBatch
_MAX_BATCH_BYTES = 2**30  # of a record batch: `datasets` writes thousands of rows in one, which may hold images


class Arrow(Format):
    """The streaming format of Arrow IPC; an offset is the byte position of a record batch."""

    suffixes = (".arrow",)

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START) -> LocatedRows:
        """Yield the rows from ``start`` on."""
        with fs.open(path, "rb") as opened:
            f = pa.PythonFile(opened, mode="r")
            schema, first = _schema(f, path)
            offset = start.offset or first
            f.seek(offset)
            while (message := _message(f, path)) is not None:
                if message.type != "record batch":
                    raise UserError(f"input: {masked(path)} holds a {message.type}; write it as Parquet")
                with user_errors(f"input: cannot read {masked(path)}", (struct.error, ValueError)):
                    size = _unpacked_size(message)
                if size > _MAX_BATCH_BYTES:
                    raise UserError(f"input: {masked(path)} has a record batch of {size} bytes; write smaller ones")
                batch = pa.ipc.read_record_batch(message, schema)
                batch.validate(full=True)
                for index in range(0, batch.num_rows, 256):
                    for row in rows_of(batch.slice(index, 256)):
                        yield offset, row
                offset = f.tell()

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """The schema of the stream."""
        with fs.open(path, "rb") as opened:
            schema, _ = _schema(pa.PythonFile(opened, mode="r"), path)
        return schema.remove_metadata()


def _schema(f: pa.NativeFile, path: str) -> tuple[pa.Schema, int]:
    message = _message(f, path)
    problem = f"input: cannot read {masked(path)} as an Arrow stream (datasets.save_to_disk)"
    if message is None or message.type != "schema":
        raise UserError(f"{problem}: it does not start with a schema")
    with user_errors(problem, (ValueError, OSError, pa.ArrowException)):
        schema = pa.ipc.read_schema(message)
        check_schema(schema, path)
    if any(pa.types.is_dictionary(kind) for kind in schema.types):
        raise UserError(f"input: {masked(path)} has dictionary-encoded columns; write it as Parquet")
    return schema, f.tell()


def _message(f: pa.NativeFile, path: str) -> pa.Message | None:
    """The next message of a stream, None at its end. Its size is checked before it is read."""
    start = f.tell()
    head = f.read(8)
    if len(head) < 8:
        return None
    mark, size = struct.unpack("<II", head)
    if mark != _CONTINUATION:
        raise UserError(f"input: {masked(path)} is not an Arrow stream, which datasets.save_to_disk writes")
    if size == 0:
        return None
    if size > _MAX_BATCH_BYTES:
        raise UserError(f"input: {masked(path)} has a message of {size} bytes; write it again")
    f.seek(start)
    with user_errors(f"input: cannot read {masked(path)}", (OSError, ValueError, MemoryError, pa.ArrowException)):
        return pa.ipc.read_message(f)


def _unpacked_size(message: pa.Message) -> int:
    """Bytes of a record batch in memory; raises `struct.error` or `ValueError` if its message is damaged."""
    if message.body is None:
        return 0
    content, body = memoryview(message.metadata), memoryview(message.body)
    batch = _table(content, _field(content, _table(content, 0), _HEADER))
    if not _field(content, batch, _COMPRESSION):
        return body.nbytes
    buffers = _field(content, batch, _BUFFERS)
    if not buffers:
        return 0
    vector = _table(content, buffers)
    (count,) = struct.unpack_from("<I", content, vector)
    return sum(_buffer_size(content, vector + 4 + 16 * index, body) for index in range(count))


def _buffer_size(content: memoryview, at: int, body: memoryview) -> int:
    start, length = struct.unpack_from("<qq", content, at)
    if length < 8:
        return 0
    if start < 0:
        raise ValueError("a buffer starts before its record batch")
    (unpacked,) = struct.unpack_from("<q", body, start)
    return int(length if unpacked < 0 else unpacked)


def _table(content: memoryview, at: int) -> int:
    """The position of the table or vector that the offset at ``at`` points to."""
    return at + int(struct.unpack_from("<I", content, at)[0])


def _field(content: memoryview, table: int, index: int) -> int:
    """The position of a table's field; 0 if the table does not have it."""
    vtable = table - int(struct.unpack_from("<i", content, table)[0])
    if vtable < 0:
        raise ValueError("a table's fields lie before its message")
    size = struct.unpack_from("<H", content, vtable)[0]
    if 4 + 2 * index >= size:
        return 0
    offset = struct.unpack_from("<H", content, vtable + 4 + 2 * index)[0]
    return table + int(offset) if offset else 0
