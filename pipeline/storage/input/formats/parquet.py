"""Parquet files, entered at any row group."""

from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.storage.input.limits import MAX_COLUMNS, MAX_DEPTH, MAX_LINE, text_size
from pipeline.storage.store.redact import masked, one_line

from .base import InputRow, SeekPoint, unreadable
from .parquet_size import batch_rows, check_rows


class Parquet:
    """Apache Parquet through pyarrow; offsets are row groups."""

    def scan(self, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[int, InputRow]]:
        """See `Format.scan`."""
        with fs.open(path, "rb") as f:
            parquet = _opened(f, path)
            _check_schema(parquet, path)
            check_rows(parquet.metadata, fs.size(path), masked(path))
            for group in range(parquet.metadata.num_row_groups):
                for row in _group_rows(parquet, group, f, path):
                    yield group, row

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint) -> Iterator[InputRow]:
        """See `Format.read`."""
        with fs.open(path, "rb") as f:
            parquet = _opened(f, path)
            for group in range(start.offset, parquet.metadata.num_row_groups):
                yield from _group_rows(parquet, group, f, path)

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """The file's own schema, dictionaries as plain values."""
        with fs.open(path, "rb") as f:
            schema = _check_schema(_opened(f, path), path)
        return pa.schema([pa.field(f.name, _plain(f.type)) for f in schema])


def _opened(f: object, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(f, page_checksum_verification=True)
    except (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException) as error:
        raise UserError(f"input: cannot read {masked(path)} as Parquet: {one_line(error)}") from None


def _check_schema(parquet: pq.ParquetFile, path: str) -> pa.Schema:
    try:
        schema = parquet.schema_arrow
        names = schema.names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"input: cannot read {masked(path)} as Parquet: {one_line(error)}") from None
    if len(names) > MAX_COLUMNS or len(set(names)) < len(names):
        raise UserError(f"input: {masked(path)} has more than {MAX_COLUMNS} columns, or names one twice")
    if any(is_deeper_than_allowed(field.type) for field in schema):
        raise UserError(f"input: {masked(path)} has values nested deeper than {MAX_DEPTH} levels")
    check_names(schema, path)
    return schema


def _group_rows(parquet: pq.ParquetFile, group: int, f: Any, path: str) -> Iterator[InputRow]:
    # First, since Arrow checks the columns' metadata then; to look at damaged ones ourselves would end the process.
    next(parquet.iter_batches(1, row_groups=[group]), None)
    rows = batch_rows(parquet.metadata.row_group(group), f, masked(path))
    for batch in parquet.iter_batches(rows, row_groups=[group]):
        for row in rows_of(batch):
            # What a batch has in bytes says nothing of dictionaries, whose values may come again and again.
            too_long = row.values is not None and text_size(row.values) > MAX_LINE
            yield unreadable("RecordTooLong", f"the record is longer than {MAX_LINE} bytes", "") if too_long else row


def rows_of(batch: pa.RecordBatch) -> list[InputRow]:
    """The rows of a batch; one whose values Python cannot hold is unreadable."""
    try:
        return [InputRow(values) for values in batch.to_pylist()]
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date that Python cannot hold
        if batch.num_rows == 1:
            return [unreadable("InvalidValue", one_line(error), "")]
    return [row for at in range(batch.num_rows) for row in rows_of(batch.slice(at, 1))]


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_deeper_than_allowed(kind: pa.DataType) -> bool:
    """Whether a type nests deeper than `MAX_DEPTH`."""
    return _is_deeper(kind, MAX_DEPTH)


def check_names(schema: pa.Schema, path: str) -> None:
    """`UserError` where a name in a nested type is no UTF-8: Arrow looks only when it makes values of that type."""
    try:
        for field in schema:
            _nested_names(field.type)
    except UnicodeDecodeError as error:
        raise UserError(f"input: {masked(path)} has a field whose name is not UTF-8: {one_line(error)}") from None


def _nested_names(kind: pa.DataType) -> list[str]:
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return [name for field in fields for name in (field.name, *_nested_names(field.type))]


def _is_deeper(kind: pa.DataType, levels: int) -> bool:
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return bool(inner) and (levels == 0 or any(_is_deeper(part, levels - 1) for part in inner))
