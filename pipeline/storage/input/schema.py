"""Find the types of passed-through columns over the whole input, so that every output file has the same schema."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.exact_json import dumps
from pipeline.records import Record
from pipeline.storage.types.common import ColumnType, has_wide, inferred
from pipeline.storage.types.plain import named
from pipeline.storage.types.values import is_json_text, json_field

from .limits import MAX_COLUMNS


class SchemaFinder:
    """Finds one type for each passed-through column, from chunks of rows or from files that state types."""

    def __init__(self) -> None:
        self._types: dict[str, ColumnType] = defaultdict(ColumnType)

    def add_schema(self, schema: pa.Schema) -> None:
        """Add the plain column types of a file that states them."""
        for field in schema:
            self._merge(field.name, ColumnType(None if is_json_text(field) else field.type))

    def add_batch(self, batch: pa.RecordBatch, names: Sequence[str]) -> None:
        """Add what the values of plain columns say beyond their types."""
        for name in names:
            kind = self._types[name]
            if kind.kind is not None and not kind.has_wide and has_wide(batch[name]):
                self._merge(name, ColumnType(has_wide=True))

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add the passed-through values of a chunk of rows."""
        names = dict.fromkeys(name for row in rows for name in row)
        if len(names.keys() | self._types.keys()) > MAX_COLUMNS:
            raise UserError(
                f"input: the records have more than {MAX_COLUMNS} columns in all, {list(names)[-1][:100]!r} among them;"
                " put values whose keys differ from record to record into one column"
            )
        for name in names:
            if self._types[name].kind is not None:
                self._merge(name, inferred([row.get(name) for row in rows]))

    def schema(self) -> pa.Schema:
        """The schema found, with columns in the order in which they first appeared."""
        stored = {name: kind.stored for name, kind in self._types.items()}
        return pa.schema([json_field(n) if kind is None else pa.field(n, kind) for n, kind in stored.items()])

    def _merge(self, name: str, kind: ColumnType) -> None:
        self._types[name] = self._types[name].merged(kind)


def record_table(records: Sequence[Record], schema: pa.Schema) -> pa.Table:
    """The passed-through values of records as a table of ``schema``; an error names the column."""
    parts = [
        _record_part(list(part), schema)
        for _, part in groupby(records, key=lambda record: record.cells and id(record.cells.batch))
    ]
    return pa.concat_tables([*parts, schema.empty_table()]).combine_chunks()


def _record_part(records: list[Record], schema: pa.Schema) -> pa.Table:
    """A part of the records, whose cells are of one batch."""
    cells = [record.cells for record in records if record.cells is not None]
    if not cells:
        return passed_table([record.passed for record in records], schema)
    indices = [cell.index for cell in cells]
    first, batch = indices[0], cells[0].batch
    is_range = indices == list(range(first, first + len(indices)))
    batch = batch.slice(first, len(indices)) if is_range else batch.take(pa.array(indices))
    arrays = [
        _array([record.passed.get(field.name) for record in records], field)
        if is_json_text(field) or field.name not in batch.schema.names
        else named(field.name, batch[field.name], field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def passed_table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Values as Python has them as a table of ``schema``; an error names the column."""
    return pa.Table.from_arrays([_array([row.get(f.name) for row in rows], f) for f in schema], schema=schema)


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    if is_json_text(field):
        return pa.array([None if value is None else dumps(value) for value in values], field.type)
    try:
        return pa.array(values, field.type)
    except (ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        raise ValueError(f"column {field.name!r}: {error}") from None
