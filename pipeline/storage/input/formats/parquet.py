"""Parquet files. Reading can start at any row group.

The rows that are read at a time are limited, because a few bytes of a file may unpack to gigabytes: a value in a
column's dictionary page is stored once, however many rows have it, and a billion values are stated in a few bytes.
"""

from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.storage.input.limits import MAX_COLUMNS, MAX_DEPTH, MAX_LINE, text_size
from pipeline.storage.store.redact import masked, masked_error, user_errors

from .base import FILE_START, Format, InputRow, LocatedRows, SeekPoint, unreadable

_MAX_BATCH_ROWS = 256
_MAX_BATCH_BYTES = 256 * 2**20  # of a batch in which each row has the longest value of the largest dictionary
_MAX_NESTED_VALUES = 2**26  # of a column of lists in one row group
_PLAUSIBLE_ROWS, _MAX_ROWS_PER_BYTE = 10**7, 10
_DICTIONARY_PAGE = 2
_PAGE_HEADER_BYTES = 16  # enough for a page's kind and size
_READ_ERRORS = (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException)
_TOO_LONG = unreadable("RecordTooLong", f"the record is longer than {MAX_LINE} bytes", "")


class Parquet(Format):
    """Apache Parquet through pyarrow; an offset is the index of a row group."""

    suffixes = (".parquet",)

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START) -> LocatedRows:
        """Yield the rows from ``start`` on."""
        with fs.open(path, "rb") as f:
            parquet = _open(f, path)
            if start == FILE_START:
                _schema(parquet, path)
                size, rows = fs.size(path), parquet.metadata.num_rows
                if rows > max(_PLAUSIBLE_ROWS, _MAX_ROWS_PER_BYTE * (size or 0)):
                    raise UserError(f"input: {masked(path)} has {size} bytes but claims {rows} rows; write it again")
            for group in range(start.offset, parquet.metadata.num_row_groups):
                for row in _group_rows(parquet, group, f, path):
                    yield group, row

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """The schema of the file, with dictionaries as plain values."""
        with fs.open(path, "rb") as f:
            schema = _schema(_open(f, path), path)
        return pa.schema([(f.name, f.type.value_type if pa.types.is_dictionary(f.type) else f.type) for f in schema])


def _open(f: object, path: str) -> pq.ParquetFile:
    with user_errors(f"input: cannot read {masked(path)} as Parquet", _READ_ERRORS):
        return pq.ParquetFile(f, page_checksum_verification=True)


def _schema(parquet: pq.ParquetFile, path: str) -> pa.Schema:
    with user_errors(f"input: cannot read {masked(path)} as Parquet", _READ_ERRORS):
        schema = parquet.schema_arrow
        check_schema(schema, path)
    return schema


def _group_rows(parquet: pq.ParquetFile, group: int, f: Any, path: str) -> Iterator[InputRow]:
    # Arrow checks the columns' metadata when it reads a batch; reading damaged metadata first would crash the process.
    next(parquet.iter_batches(1, row_groups=[group]), None)
    rows = _batch_rows(parquet.metadata.row_group(group), f, masked(path))
    for batch in parquet.iter_batches(rows, row_groups=[group]):
        yield from rows_of(batch)


def rows_of(batch: pa.RecordBatch) -> list[InputRow]:
    """The rows of a batch. A row with values that Python cannot hold, or that is too long, is unreadable."""
    try:
        # The bytes of a batch do not limit those of a row: many rows may share one value of a dictionary.
        return [_TOO_LONG if text_size(row) > MAX_LINE else InputRow(row) for row in batch.to_pylist()]
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date that Python cannot hold
        if batch.num_rows == 1:
            return [unreadable("InvalidValue", masked_error(error), "")]
    return [row for index in range(batch.num_rows) for row in rows_of(batch.slice(index, 1))]


def check_schema(schema: pa.Schema, path: str) -> None:
    """Raise `UserError` for too many columns, types that are too deep, and names that repeat or are not UTF-8."""
    if len(schema.names) > MAX_COLUMNS or len(set(schema.names)) < len(schema.names):
        raise UserError(f"input: {masked(path)} has more than {MAX_COLUMNS} columns, or names one twice")
    if any(_is_too_deep(kind, MAX_DEPTH) for kind in schema.types):
        raise UserError(f"input: {masked(path)} has values nested deeper than {MAX_DEPTH} levels")
    # Arrow checks the names in a nested type only when it makes values of the type.
    with user_errors(f"input: {masked(path)} has a field whose name is not UTF-8", (UnicodeDecodeError,)):
        for field in schema:
            _nested_names(field.type)


def _is_too_deep(kind: pa.DataType, levels: int) -> bool:
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return bool(inner) and (levels == 0 or any(_is_too_deep(part, levels - 1) for part in inner))


def _nested_names(kind: pa.DataType) -> list[str]:
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return [name for field in fields for name in (field.name, *_nested_names(field.type))]


def _batch_rows(group: pq.RowGroupMetaData, f: Any, path: str) -> int:
    """The number of rows of a row group to read at a time. ``f``: the open file, whose position is restored."""
    position, max_value_bytes = f.tell(), 1
    for index in range(group.num_columns):
        column = group.column(index)
        if "." in column.path_in_schema and column.num_values > _MAX_NESTED_VALUES:
            raise UserError(
                f"input: {path} has {column.num_values} values of {column.path_in_schema[:100]!r} in one row group;"
                f" the limit is {_MAX_NESTED_VALUES}; write it with smaller row groups"
            )
        if column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"):
            # DELTA_BYTE_ARRAY stores only the difference from the previous value.
            is_delta = "DELTA_BYTE_ARRAY" in column.encodings
            column_bytes = column.total_uncompressed_size if is_delta else _dictionary_bytes(column, f)
            max_value_bytes = max(max_value_bytes, column_bytes)
    f.seek(position)
    return max(1, min(_MAX_BATCH_ROWS, _MAX_BATCH_BYTES // max_value_bytes))


def _dictionary_bytes(column: pq.ColumnChunkMetaData, f: Any) -> int:
    """Unpacked size of the dictionary page; 0 if there is none."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset and column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    if start < 0:
        return 0
    f.seek(start)
    kind, size = _page_header(f.read(_PAGE_HEADER_BYTES))
    return size if kind == _DICTIONARY_PAGE else 0


def _page_header(content: bytes) -> tuple[int, int]:
    """Kind and unpacked size of a page: the first two fields of a struct in Thrift's compact protocol."""
    values, at = [], 0
    for _ in range(2):
        if content[at : at + 1] != b"\x15":  # the next field, a 32-bit number
            return -1, 0
        at, value, shift = at + 1, 0, 0
        while at < len(content):
            value |= (content[at] & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if content[at - 1] < 0x80:
                break
        values.append((value >> 1) ^ -(value & 1))
    return values[0], max(0, values[1])
