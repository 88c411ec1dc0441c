"""Infer the types of passed-through columns over the whole input, so that every output file has the same schema."""

from typing import Any

import pyarrow as pa

from pipeline.errors import UserError

from .columns import row_text
from .limits import MAX_COLUMNS

_JSON = {b"loraloom": b"json"}
_MAX_FIELDS = 1000  # of an object that is stored as a struct


class SchemaFinder:
    """Infers one type for each passed-through column from chunks of rows.

    Integers widen to floating point. A column whose values have no common type, or nested values that Parquet cannot
    hold, is stored as JSON text, marked in the field's metadata.
    """

    def __init__(self) -> None:
        self._types: dict[str, pa.DataType | None] = {}  # None: JSON

    def add_schema(self, schema: pa.Schema) -> None:
        """Add the column types of a file that states them."""
        for field in schema:
            self._merge(field.name, field.type)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Add the passed-through values of a chunk of rows."""
        names = dict.fromkeys(name for row in rows for name in row)
        if len(names.keys() | self._types.keys()) > MAX_COLUMNS:
            raise UserError(
                f"input: the records have more than {MAX_COLUMNS} columns in all, {list(names)[-1][:100]!r} among them;"
                " put values whose keys differ from record to record into one column"
            )
        for name in names:
            if self._types.get(name, pa.null()) is not None:
                self._merge(name, _type_of([row.get(name) for row in rows]))

    def schema(self) -> pa.Schema:
        """The inferred schema, with columns in the order in which they first appeared."""
        return pa.schema([_field(name, kind) for name, kind in self._types.items()])

    def _merge(self, name: str, kind: pa.DataType | None) -> None:
        known = self._types.get(name, pa.null())
        self._types[name] = None if known is None or kind is None else _unified(known, kind)


def passed_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """The passed-through values of rows as a table of ``schema``."""
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if field.metadata and _JSON.items() <= field.metadata.items():
            values = [None if v is None else row_text(v) for v in values]
        try:
            arrays.append(pa.array(values, field.type))
        except (pa.ArrowException, OverflowError):
            arrays.append(pa.array([_widened(v, field.type) for v in values], field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _widened(value: Any, kind: pa.DataType) -> Any:
    """The value with integers as floats where ``kind`` has floats: Arrow does not convert integers beyond 2**53."""
    if pa.types.is_floating(kind) and isinstance(value, int):
        return float(value)
    if pa.types.is_struct(kind) and isinstance(value, dict):
        return {f.name: _widened(value.get(f.name), f.type) for f in kind}
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and isinstance(value, list):
        return [_widened(v, kind.value_type) for v in value]
    return value


def _field(name: str, kind: pa.DataType | None) -> pa.Field:
    if kind is None:
        return pa.field(name, pa.string(), metadata=_JSON)
    return pa.field(name, pa.string() if pa.types.is_null(kind) else kind)


def _type_of(values: list[Any]) -> pa.DataType | None:
    if _has_map(values):
        return None
    try:
        kind = pa.array(values).type
    except (pa.ArrowException, OverflowError):
        return None
    return None if _is_unfit(kind) else kind


def _unified(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    try:
        merged = pa.unify_schemas([pa.schema([("c", a)]), pa.schema([("c", b)])], promote_options="permissive")
    except pa.ArrowException:
        return None
    kind = merged.field("c").type
    if _is_unfit(kind) or not (_holds(kind, a) and _holds(kind, b)):
        return None
    if pa.types.is_floating(kind) and pa.types.is_integer(a) != pa.types.is_integer(b):
        return pa.float64()
    return kind


def _holds(kind: pa.DataType, part: pa.DataType) -> bool:
    """Whether a type unified by Arrow holds ``part``: signed integers may be too narrow, floats hold no decimals."""
    if pa.types.is_struct(part):
        return all(_holds(kind.field(f.name).type, f.type) for f in part)
    if pa.types.is_list(part) or pa.types.is_large_list(part):
        return _holds(kind.value_type, part.value_type)
    if pa.types.is_unsigned_integer(part) and pa.types.is_signed_integer(kind):
        return bool(kind.bit_width > part.bit_width)
    return not (pa.types.is_decimal(part) and pa.types.is_floating(kind))


def _has_map(values: list[Any]) -> bool:
    """Whether objects in one position have more keys together than a struct may have fields."""
    objects = [v for v in values if isinstance(v, dict)]
    keys = {key for o in objects for key in o}
    if len(keys) > _MAX_FIELDS or any(_has_map([o[key] for o in objects if key in o]) for key in keys):
        return True
    lists = [v for v in values if isinstance(v, list)]
    return bool(lists) and _has_map([v for inner in lists for v in inner])


def _is_unfit(kind: pa.DataType) -> bool:
    """Whether a type is stored as JSON: Parquet has no structs without fields, and a map's keys have no limit."""
    if pa.types.is_struct(kind):
        return not 0 < kind.num_fields <= _MAX_FIELDS or any(_is_unfit(f.type) for f in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_unfit(kind.value_type)
    return False
