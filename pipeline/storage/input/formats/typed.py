"""Rows of Arrow batches, and the plain schema of a file that states types."""

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.records import Cells
from pipeline.storage.input.limits import MAX_DEPTH, MAX_LINE, text_size
from pipeline.storage.store.redact import masked, masked_error, user_errors
from pipeline.storage.types.plain import UnfitTypeError, plain_batch, plain_type
from pipeline.storage.types.values import is_json_text, json_field, python_rows

from .base import InputRow, check_names, unreadable

_TOO_LONG = unreadable("RecordTooLong", f"the record is longer than {MAX_LINE} bytes", "")


def rows_of(batch: pa.RecordBatch, schema: pa.Schema) -> list[InputRow]:
    """The rows of a batch with the plain types of ``schema``. A row with an invalid value, or too long, is unreadable.

    The bytes of a batch do not limit those of a row: many rows may share one value of a dictionary.
    """
    try:
        plain = plain_batch(batch, schema)
        size = plain.nbytes // max(1, plain.num_rows)
        rows = [InputRow(values, cells=Cells(plain, index, size)) for index, values in enumerate(python_rows(plain))]
        if plain.nbytes <= MAX_LINE:
            return rows
        return [_TOO_LONG if text_size(row.values) > MAX_LINE else row for row in rows]
    except ValueError as error:  # text that is not UTF-8, a time that the plain type cannot hold
        if batch.num_rows == 1:
            return [unreadable("InvalidValue", masked_error(error)[:300], "")]
    return [row for index in range(batch.num_rows) for row in rows_of(batch.slice(index, 1), schema)]


def plain_schema(schema: pa.Schema, path: str) -> pa.Schema:
    """The schema with plain types. Raises `UserError` for a type that the output cannot hold, by the column's name.

    Also for too many columns, types that are too deep, and names that repeat or are not UTF-8.
    """
    # Arrow checks the names in a nested type only when it makes values of the type.
    with user_errors(f"input: {masked(path)} has a field whose name is not UTF-8", (UnicodeDecodeError,)):
        check_names(schema.names, masked(path))
        plain = pa.schema([_plain_field(field, path) for field in schema])
    if any(_is_too_deep(kind, MAX_DEPTH) for kind in plain.types):
        raise UserError(f"input: {masked(path)} has values nested deeper than {MAX_DEPTH} levels")
    return plain


def _plain_field(field: pa.Field, path: str) -> pa.Field:
    try:
        return json_field(field.name) if is_json_text(field) else pa.field(field.name, plain_type(field.type))
    except UnfitTypeError as error:
        raise UserError(
            f"input: {masked(path)}: the column {field.name!r} is of the type {error}, which Parquet cannot hold;"
            " convert it, or leave the column out"
        ) from None


def _is_too_deep(kind: pa.DataType, levels: int) -> bool:
    inner = [kind.field(i).type for i in range(kind.num_fields)]
    return bool(inner) and (levels == 0 or any(_is_too_deep(part, levels - 1) for part in inner))
