"""Arrow IPC streams, as Hugging Face `datasets` saves them (`save_to_disk`). Reading can start at any record batch."""

import struct
from collections.abc import Iterator

import fsspec
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.storage.input.limits import MAX_COLUMNS
from pipeline.storage.store.redact import masked, masked_error

from .arrow_size import unpacked_size
from .base import FILE_START, Format, InputRow, SeekPoint
from .parquet import check_names, is_too_deep, rows_of

_CONTINUATION = 0xFFFFFFFF
_MAX_BATCH_BYTES = 2**30  # of a record batch: `datasets` writes thousands of rows in one, which may hold images


class Arrow(Format):
    """The streaming format of Arrow IPC; an offset is the byte position of a record batch."""

    suffixes = (".arrow",)

    def read(
        self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START
    ) -> Iterator[tuple[int, InputRow]]:
        """Yield the rows from ``start`` on, with their offsets."""
        with fs.open(path, "rb") as opened:
            f = pa.PythonFile(opened, mode="r")
            schema, first = _schema(f, path)
            offset = start.offset or first
            f.seek(offset)
            while (message := _message(f, path)) is not None:
                if message.type != "record batch":
                    raise UserError(f"input: {masked(path)} holds a {message.type}; write it as Parquet")
                if (size := _batch_bytes(message, path)) > _MAX_BATCH_BYTES:
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
    try:
        if message is None or message.type != "schema":
            raise ValueError("it does not start with a schema")
        schema = pa.ipc.read_schema(message)
        names = schema.names
    except (ValueError, OSError, pa.ArrowException) as error:
        raise UserError(
            f"input: cannot read {masked(path)} as an Arrow stream (datasets.save_to_disk): {masked_error(error)}"
        ) from None
    if len(names) > MAX_COLUMNS or len(set(names)) < len(names) or any(map(is_too_deep, schema.types)):
        raise UserError(
            f"input: {masked(path)} has more than {MAX_COLUMNS} columns, names one twice, or nests values too deep"
        )
    if any(pa.types.is_dictionary(kind) for kind in schema.types):
        raise UserError(f"input: {masked(path)} has dictionary-encoded columns; write it as Parquet")
    check_names(schema, path)
    return schema, f.tell()


def _batch_bytes(message: pa.Message, path: str) -> int:
    try:
        return unpacked_size(message)
    except (struct.error, ValueError) as error:
        raise UserError(f"input: cannot read {masked(path)}: {masked_error(error)}") from None


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
    try:
        return pa.ipc.read_message(f)
    except (OSError, ValueError, MemoryError, pa.ArrowException) as error:
        raise UserError(f"input: cannot read {masked(path)}: {masked_error(error)}") from None
