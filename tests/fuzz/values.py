"""What is read must be what a parser of its own finds in the same bytes: no value may silently become another one."""

import io
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.records import PASSED
from pipeline.storage.types.values import is_json_text, python_rows
from tests.storage.types.samples import same


def check_values(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """Compare rows of JSON values; a column that a row does not have is null."""
    for row, given in zip(found, expected, strict=True):
        for name in row.keys() | given.keys():
            assert same(row.get(name), given.get(name)), (name, row.get(name), given.get(name))


def check_passed(table: pa.Table, expected: Sequence[dict[str, Any]]) -> None:
    """Compare the passed-through columns of a staged table with the values of its records."""
    names = [name for name in table.column_names if name.startswith(PASSED)]
    rows = python_rows(table.select(names))
    check_values([{name.removeprefix(PASSED): value for name, value in row.items()} for row in rows], expected)


def read_parquet(content: bytes) -> pa.Table | None:
    """What Arrow itself finds in a Parquet file; None if it finds it damaged."""
    try:
        return pq.ParquetFile(io.BytesIO(content)).read()
    except (OSError, ValueError, pa.ArrowException):
        return None


def read_ipc(content: bytes) -> pa.Table | None:
    """What Arrow itself finds in a stream, or in that of a file; None if it finds it damaged.

    Its reader of whole streams reads other bytes than its reader of messages where a buffer of a damaged file is not
    aligned, so it is asked only about dictionaries, which that one does not read.
    """
    try:
        stream = content.removeprefix(b"ARROW1\0\0")
        head, *messages = pa.ipc.MessageReader.open_stream(stream)
        if any(message.type == "dictionary" for message in messages):
            return pa.ipc.open_stream(stream).read_all()
        schema = pa.ipc.read_schema(head)
        return pa.Table.from_batches([pa.ipc.read_record_batch(m, schema) for m in messages], schema)
    except (OSError, ValueError, pa.ArrowException):
        return None


def check_columns(table: pa.Table, source: pa.Table) -> None:
    """Compare the passed-through columns of a staged table with those of the file; rows that are dead are left out."""
    alive = table["dead"].is_null().to_pylist()
    for name in table.column_names:
        if name.startswith(PASSED) and not is_json_text(table.schema.field(name)):
            column = source[name.removeprefix(PASSED)]
            if isinstance(column.type, pa.BaseExtensionType) and column.type != pa.uuid():
                column = pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)
            assert len(column) == len(alive)
            for row in (row for row, is_alive in enumerate(alive) if is_alive):  # others may be damaged
                stored, given = table[name][row], column[row]
                assert _equal(stored, given), (name, str(stored.type), str(given.type))


def _equal(stored: pa.Scalar, given: pa.Scalar) -> bool:
    """Whether Python shows both alike; of values that it does not have, whether Arrow casts one to the other."""
    try:
        value = given.as_py()
        return repr(stored.as_py()) == repr(str(value) if isinstance(value, UUID) else value)
    except (ValueError, ArithmeticError, pa.ArrowException):
        return bool(given.cast(stored.type).equals(stored))
