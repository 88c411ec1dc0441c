"""Parquet files, entered at any row group."""

from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from ...errors import UserError
from ..files import one_line
from .base import Row, SeekPoint, unreadable


class Parquet:
    """Apache Parquet through pyarrow; offsets are row groups."""

    def scan(self, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[int, Row]]:
        """See `Format.scan`."""
        with fs.open(path, "rb") as f:
            parquet = _opened(f, path)
            for group in range(parquet.metadata.num_row_groups):
                for row in _group_rows(parquet, group):
                    yield group, row

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint) -> Iterator[Row]:
        """See `Format.read`."""
        with fs.open(path, "rb") as f:
            parquet = _opened(f, path)
            for group in range(start.offset, parquet.metadata.num_row_groups):
                yield from _group_rows(parquet, group)

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """The file's own schema, dictionaries as plain values."""
        with fs.open(path, "rb") as f:
            schema = _opened(f, path).schema_arrow
        return pa.schema([pa.field(f.name, _plain(f.type)) for f in schema])


def _opened(f: object, path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(f)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"input: cannot read {path} as Parquet: {one_line(error)}") from None


def _group_rows(parquet: pq.ParquetFile, group: int) -> Iterator[Row]:
    for batch in parquet.iter_batches(1024, row_groups=[group]):
        yield from _rows(batch)


def _rows(batch: pa.RecordBatch) -> list[Row]:
    try:
        return [Row(values) for values in batch.to_pylist()]
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date that Python cannot hold
        if batch.num_rows == 1:
            return [unreadable("InvalidValue", one_line(error), "")]
    return [row for at in range(batch.num_rows) for row in _rows(batch.slice(at, 1))]


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind
