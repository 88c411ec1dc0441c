"""Arrow streams, as Hugging Face `datasets` saves them (`save_to_disk`), entered at any record batch."""

import struct
from collections.abc import Iterator

import fsspec
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.storage.input.limits import MAX_COLUMNS, MAX_LINE, text_size
from pipeline.storage.store.redact import masked, one_line

from .arrow_size import unpacked_size
from .base import InputRow, SeekPoint, unreadable
from .parquet import check_names, is_deeper_than_allowed, rows_of

_CONTINUED = 0xFFFFFFFF
_MOST_BYTES = 2**30  # of a record batch: `datasets` writes thousands of rows, and images make them large


class Arrow:
    """The streaming format of Arrow IPC; offsets are those of the record batches in the file."""

    def scan(self, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[int, InputRow]]:
        """See `Format.scan`."""
        yield from _rows(fs, path, 0)

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint) -> Iterator[InputRow]:
        """See `Format.read`."""
        for _, row in _rows(fs, path, start.offset):
            yield row

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """The stream's own schema."""
        with fs.open(path, "rb") as opened:
            schema, _ = _schema(pa.PythonFile(opened, mode="r"), path)
        return schema.remove_metadata()


def _rows(fs: fsspec.AbstractFileSystem, path: str, offset: int) -> Iterator[tuple[int, InputRow]]:
    with fs.open(path, "rb") as opened:
        f = pa.PythonFile(opened, mode="r")
        schema, first = _schema(f, path)
        at = offset or first
        f.seek(at)
        while (message := _message(f, path)) is not None:
            if message.type != "record batch":
                raise UserError(f"input: {masked(path)} holds a {message.type}; write it as Parquet")
            if (size := _unpacked(message, path)) > _MOST_BYTES:
                raise UserError(f"input: {masked(path)} has a record batch of {size} bytes; write smaller ones")
            batch = pa.ipc.read_record_batch(message, schema)
            batch.validate(full=True)
            for part in range(0, batch.num_rows, 256):
                for row in rows_of(batch.slice(part, 256)):
                    long = row.values is not None and text_size(row.values) > MAX_LINE
                    yield (
                        at,
                        unreadable("RecordTooLong", f"the record is longer than {MAX_LINE} bytes", "") if long else row,
                    )
            at = f.tell()


def _schema(f: pa.NativeFile, path: str) -> tuple[pa.Schema, int]:
    message = _message(f, path)
    try:
        if message is None or message.type != "schema":
            raise ValueError("it does not begin with a schema")
        schema = pa.ipc.read_schema(message)
        names = schema.names
    except (ValueError, OSError, pa.ArrowException) as error:
        raise UserError(
            f"input: cannot read {masked(path)} as an Arrow stream (datasets.save_to_disk): {one_line(error)}"
        ) from None
    if len(names) > MAX_COLUMNS or len(set(names)) < len(names) or any(map(is_deeper_than_allowed, schema.types)):
        raise UserError(
            f"input: {masked(path)} has more than {MAX_COLUMNS} columns, names one twice, or nests values too deep"
        )
    if any(pa.types.is_dictionary(kind) for kind in schema.types):
        raise UserError(f"input: {masked(path)} has dictionary-encoded columns; write it as Parquet")
    check_names(schema, path)
    return schema, f.tell()


def _unpacked(message: pa.Message, path: str) -> int:
    try:
        return unpacked_size(message)
    except (struct.error, ValueError) as error:
        raise UserError(f"input: cannot read {masked(path)}: {one_line(error)}") from None


def _message(f: pa.NativeFile, path: str) -> pa.Message | None:
    """The next message of a stream, None at its end; nothing is read that the file does not have."""
    start = f.tell()
    head = f.read(8)
    if len(head) < 8:
        return None
    mark, size = struct.unpack("<II", head)
    if mark != _CONTINUED:
        raise UserError(f"input: {masked(path)} is no Arrow stream; datasets.save_to_disk writes such")
    if size == 0:
        return None
    if size > _MOST_BYTES:
        raise UserError(f"input: {masked(path)} has a message of {size} bytes; write it anew")
    f.seek(start)
    try:
        return pa.ipc.read_message(f)
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise UserError(f"input: cannot read {masked(path)}: {one_line(error)}") from None
