"""The unpacked size of a record batch of an Arrow stream: a few kilobytes may unpack to gigabytes.

A batch's message is a FlatBuffer (`Message.fbs` of the Arrow format): a table starts with the distance back to its
vtable, which holds the offsets of its fields. A compressed buffer starts with its unpacked size in bytes, or -1 if it
is not compressed.
"""

import struct

import pyarrow as pa

_HEADER, _BUFFERS, _COMPRESSION = 2, 2, 3  # fields of Message and of RecordBatch


def unpacked_size(message: pa.Message) -> int:
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
