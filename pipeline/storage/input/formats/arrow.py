"""Arrow IPC: streams, as Hugging Face `datasets` saves them (`save_to_disk`), and files, as Feather and Polars do.

A file is a stream between a mark and a footer. Reading can start at any record batch. A few kilobytes of a compressed
batch may unpack to gigabytes, so its size is read from its message first. The message is a FlatBuffer (`Message.fbs` of
the Arrow format): a table starts with the distance back to its vtable, which holds the offsets of its fields. A
compressed buffer starts with its unpacked size in bytes, or -1 if it is not compressed.
"""

import struct
from collections.abc import Iterator

import fsspec
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, user_errors

from .base import FILE_START, Format, LocatedRows, SeekPoint
from .typed import plain_schema, rows_of

_CONTINUATION, _FILE_MARK, _END_MARK = 0xFFFFFFFF, b"ARROW1\0\0", b"ARROW1"
_HEADER, _BUFFERS, _COMPRESSION, _DATA = 2, 2, 3, 1  # fields of Message, RecordBatch (two) and DictionaryBatch
_MAX_BATCH_BYTES = 2**30  # of a record batch: `datasets` writes thousands of rows in one, which may hold images
_READ_ERRORS = (OSError, ValueError, MemoryError, struct.error, pa.ArrowException)


class Arrow(Format):
    """The streaming and the file format of Arrow IPC; an offset is the byte position of a record batch."""

    suffixes = (".arrow", ".feather")

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START) -> LocatedRows:
        """Yield the rows from ``start`` on."""
        with fs.open(path, "rb") as opened:
            f = pa.PythonFile(opened, mode="r")
            head, schema = _head(f, path)
            plain = plain_schema(schema, path)
            for offset, batch in _batches(f, path, head, schema, start.offset):
                for index in range(0, batch.num_rows, 256):
                    for row in rows_of(batch.slice(index, 256), plain):
                        yield offset, row

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """The schema of the file, with plain types."""
        with fs.open(path, "rb") as opened:
            _, schema = _head(pa.PythonFile(opened, mode="r"), path)
            return plain_schema(schema, path)


def _head(f: pa.NativeFile, path: str) -> tuple[pa.Message, pa.Schema]:
    """The first message, and the schema in it."""
    problem = f"input: cannot read {masked(path)} as an Arrow stream or file"
    is_file = f.read(len(_FILE_MARK)) == _FILE_MARK
    if is_file:
        f.seek(max(0, f.size() - len(_END_MARK)))
        if f.read() != _END_MARK:
            raise UserError(f"{problem}: its end is missing")
    f.seek(len(_FILE_MARK) if is_file else 0)
    message = _message(f, path)
    if message is None or message.type != "schema":
        raise UserError(f"{problem}: it does not start with a schema")
    with user_errors(problem, _READ_ERRORS):
        return message, pa.ipc.read_schema(message)


def _batches(
    f: pa.NativeFile, path: str, head: pa.Message, schema: pa.Schema, start: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The record batches from the position ``start`` on, each with its own. ``f``: at its first batch.

    What a batch needs of a dictionary is in messages before it, which are read from the beginning.
    """
    dictionaries: list[pa.Message] = []
    dictionary_bytes = 0
    if not any(map(_has_dictionary, schema.types)):
        f.seek(start or f.tell())
    while True:
        offset = f.tell()
        message = _message(f, path)
        if message is None:
            return
        with user_errors(f"input: cannot read {masked(path)}", _READ_ERRORS):
            size = _unpacked_size(message)
            if size + dictionary_bytes > _MAX_BATCH_BYTES:
                raise UserError(f"input: {masked(path)} has a record batch of {size} bytes; write smaller ones")
            if message.type == "dictionary":
                dictionaries.append(message)
                dictionary_bytes += size
            elif message.type != "record batch":
                raise UserError(f"input: {masked(path)} holds a {message.type}; write it as Parquet")
            elif offset >= start:
                batch = _batch(message, schema, head, dictionaries)
                batch.validate(full=True)
                yield offset, batch


def _batch(message: pa.Message, schema: pa.Schema, head: pa.Message, dictionaries: list[pa.Message]) -> pa.RecordBatch:
    if not dictionaries:
        return pa.ipc.read_record_batch(message, schema)
    sink = pa.BufferOutputStream()
    for part in (head, *dictionaries, message):
        part.serialize_to(sink)
    return pa.ipc.open_stream(sink.getvalue()).read_next_batch()


def _has_dictionary(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_dictionary(kind.storage_type)
    if pa.types.is_run_end_encoded(kind):
        return _has_dictionary(kind.value_type)
    return pa.types.is_dictionary(kind) or any(_has_dictionary(kind.field(i).type) for i in range(kind.num_fields))


def _message(f: pa.NativeFile, path: str) -> pa.Message | None:
    """The next message of a stream, None at its end. Its size is checked before it is read."""
    start = f.tell()
    head = f.read(8)
    if len(head) < 8:
        return None
    mark, size = struct.unpack("<II", head)
    if mark != _CONTINUATION:
        raise UserError(f"input: {masked(path)} is neither an Arrow stream (datasets.save_to_disk) nor an Arrow file")
    if size == 0:
        return None
    if size > _MAX_BATCH_BYTES:
        raise UserError(f"input: {masked(path)} has a message of {size} bytes; write it again")
    f.seek(start)
    with user_errors(f"input: cannot read {masked(path)}", _READ_ERRORS):
        return pa.ipc.read_message(f)


def _unpacked_size(message: pa.Message) -> int:
    """Bytes of a batch in memory; raises `struct.error` or `ValueError` if its message is damaged."""
    if message.body is None:
        return 0
    content, body = memoryview(message.metadata), memoryview(message.body)
    batch = _table(content, _field(content, _table(content, 0), _HEADER))
    if message.type == "dictionary":
        batch = _table(content, _field(content, batch, _DATA))
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
