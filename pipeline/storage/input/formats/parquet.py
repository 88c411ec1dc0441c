"""Parquet files. Reading can start at any row group."""

from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError
from pipeline.storage.input.limits import MAX_COLUMNS, MAX_DEPTH, MAX_LINE, text_size
from pipeline.storage.store.redact import masked, masked_error

from .base import FILE_START, Format, InputRow, SeekPoint, unreadable
from .parquet_size import batch_rows, check_rows


class Parquet(Format):
    """Apache Parquet through pyarrow; an offset is the index of a row group."""

    suffixes = (".parquet",)

    def read(
        self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START
    ) -> Iterator[tuple[int, InputRow]]:
        """Yield the rows from ``start`` on, with their offsets."""
        with fs.open(path, "rb") as f:
            parquet = _open(f, path)
            if start == FILE_START:
                _check_schema(parquet, path)
                check_rows(parquet.metadata, fs.size(path), masked(path))
            for group in range(start.offset, parquet.metadata.num_row_groups):
                for row in _group_rows(parquet, group, f, path):
                    yield group, row

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """The schema of the file, with dictionaries as plain values."""
        with fs.open(path, "rb") as f:
            schema = _check_schema(_open(f, path), path)
        return pa.schema([pa.field(f.name, _plain(f.type)) for f in schema])


def _open(f: object, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(f, page_checksum_verification=True)
    except (OSError, ValueError, OverflowError, MemoryError, pa.ArrowException) as error:
        raise UserError(f"input: cannot read {masked(path)} as Parquet: {masked_error(error)}") from None


def _check_schema(parquet: pq.ParquetFile, path: str) -> pa.Schema:
    try:
        schema = parquet.schema_arrow
        names = schema.names
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"input: cannot read {masked(path)} as Parquet: {masked_error(error)}") from None
    if len(names) > MAX_COLUMNS or len(set(names)) < len(names):
        raise UserError(f"input: {masked(path)} has more than {MAX_COLUMNS} columns, or names one twice")
    if any(is_too_deep(field.type) for field in schema):
        raise UserError(f"input: {masked(path)} has values nested deeper than {MAX_DEPTH} levels")
    check_names(schema, path)
    return schema


def _group_rows(parquet: pq.ParquetFile, group: int, f: Any, path: str) -> Iterator[InputRow]:
    # Arrow checks the columns' metadata when it reads a batch; reading damaged metadata first would crash the process.
    next(parquet.iter_batches(1, row_groups=[group]), None)
    rows = batch_rows(parquet.metadata.row_group(group), f, masked(path))
    for batch in parquet.iter_batches(rows, row_groups=[group]):
        yield from rows_of(batch)


def rows_of(batch: pa.RecordBatch) -> list[InputRow]:
    """The rows of a batch. A row with values that Python cannot hold, or that is too long, is unreadable."""
    try:
        return [_checked_row(values) for values in batch.to_pylist()]
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date that Python cannot hold
        if batch.num_rows == 1:
            return [unreadable("InvalidValue", masked_error(error), "")]
    return [row for index in range(batch.num_rows) for row in rows_of(batch.slice(index, 1))]


def _checked_row(values: dict[str, Any]) -> InputRow:
    # The bytes of a batch do not limit those of a row: many rows may share one value of a dictionary.
    if text_size(values) > MAX_LINE:
        return unreadable("RecordTooLong", f"the record is longer than {MAX_LINE} bytes", "")
    return InputRow(values)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_too_deep(kind: pa.DataType, levels: int = MAX_DEPTH) -> bool:
    """Whether a type nests deeper than ``levels``."""
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return bool(inner) and (levels == 0 or any(is_too_deep(part, levels - 1) for part in inner))


def check_names(schema: pa.Schema, path: str) -> None:
    """Raise `UserError` if a name in a nested type is not UTF-8: Arrow checks only when it makes values of the type."""
    try:
        for field in schema:
            _nested_names(field.type)
    except UnicodeDecodeError as error:
        raise UserError(f"input: {masked(path)} has a field whose name is not UTF-8: {masked_error(error)}") from None


def _nested_names(kind: pa.DataType) -> list[str]:
    fields = [kind.field(i) for i in range(kind.num_fields)]
    return [name for field in fields for name in (field.name, *_nested_names(field.type))]
