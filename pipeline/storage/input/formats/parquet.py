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
from pipeline.storage.store.redact import masked, user_errors

from .base import FILE_START, Format, InputRow, LocatedRows, SeekPoint
from .typed import plain_schema, rows_of

_MAX_BATCH_ROWS = 256
_MAX_BATCH_BYTES = 256 * 2**20  # of a batch in which each row has the longest value of the largest dictionary
_MAX_NESTED_VALUES = 2**26  # of a column of lists in one row group
_PLAUSIBLE_ROWS, _MAX_ROWS_PER_BYTE = 10**7, 10
_DICTIONARY_PAGE = 2
_PAGE_HEADER_BYTES = 16  # enough for a page's kind and size
_READ_ERRORS = (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException)


class Parquet(Format):
    """Apache Parquet through pyarrow; an offset is the index of a row group."""

    suffixes = (".parquet",)

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START) -> LocatedRows:
        """Yield the rows from ``start`` on."""
        with fs.open(path, "rb") as f:
            parquet = _open(f, path)
            schema = _schema(parquet, path)
            if start == FILE_START:
                size, rows = fs.size(path), parquet.metadata.num_rows
                if rows > max(_PLAUSIBLE_ROWS, _MAX_ROWS_PER_BYTE * (size or 0)):
                    raise UserError(f"input: {masked(path)} has {size} bytes but claims {rows} rows; write it again")
            for group in range(start.offset, parquet.metadata.num_row_groups):
                for row in _group_rows(parquet, group, f, path, schema):
                    yield group, row

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """The schema of the file, with plain types."""
        with fs.open(path, "rb") as f:
            return _schema(_open(f, path), path)


def _open(f: object, path: str) -> pq.ParquetFile:
    with user_errors(f"input: cannot read {masked(path)} as Parquet", _READ_ERRORS):
        return pq.ParquetFile(f, page_checksum_verification=True)


def _schema(parquet: pq.ParquetFile, path: str) -> pa.Schema:
    with user_errors(f"input: cannot read {masked(path)} as Parquet", _READ_ERRORS):
        return plain_schema(parquet.schema_arrow, path)


def _group_rows(parquet: pq.ParquetFile, group: int, f: Any, path: str, schema: pa.Schema) -> Iterator[InputRow]:
    # Arrow checks the columns' metadata when it reads a batch; reading damaged metadata first would crash the process.
    next(parquet.iter_batches(1, row_groups=[group]), None)
    rows = _batch_rows(parquet.metadata.row_group(group), f, masked(path))
    for batch in parquet.iter_batches(rows, row_groups=[group]):
        yield from rows_of(batch, schema)


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
