"""Values: from Arrow to Python, and columns of JSON text, each exactly.

Where Python or JSON cannot hold a value, it is text: dates and times as ISO 8601 (with a zone, in UTC: `Z`), durations
as in `PT1.5S`, and floating point that is no number as `NaN`, `Infinity` or `-Infinity`. A map with distinct keys of
text is an object, any other a list of [key, value].
"""

import json
import math
from decimal import Decimal
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from pipeline.exact_json import loads

_JSON = {b"loraloom": b"json"}
_FAR = "<value out of range: "  # how Arrow shows a date beyond the year 32767
_PER_SECOND = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # digits


def json_field(name: str) -> pa.Field:
    """The field of a column of JSON text."""
    return pa.field(name, pa.string(), metadata=_JSON)


def is_json_text(field: pa.Field) -> bool:
    """Whether a column holds JSON text, which readers give as the values in it."""
    return bool(field.type == pa.string() and field.metadata and _JSON.items() <= field.metadata.items())


def python_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """The rows of plain columns as Python values; see `python_values`. JSON text is parsed."""
    if isinstance(batch, pa.Table):
        return [row for part in batch.to_batches() for row in python_rows(part)]
    columns = []
    for field, array in zip(batch.schema, batch.columns, strict=True):
        try:
            values = python_values(array)
            columns.append([None if v is None else loads(v) for v in values] if is_json_text(field) else values)
        except (ValueError, ArithmeticError) as error:
            raise ValueError(f"column {field.name!r}: {error}") from None
    if not columns:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def python_values(array: pa.Array) -> list[Any]:
    """The values of a plain array: those of JSON, bytes and decimals as such, others as text.

    Raises `ValueError` for text that is not UTF-8.
    """
    kind = array.type
    if kinds.is_list(kind):
        return _split(python_values(array.flatten()), array)
    if kinds.is_map(kind):
        lists = array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
        keys, items = map(python_values, lists.flatten().flatten())
        pairs = _split(list(zip(keys, items, strict=True)), lists)
        return [None if entries is None else _object(entries) for entries in pairs]
    if kinds.is_struct(kind):
        columns = [python_values(part) for part in array.flatten()]
        rows = zip(*columns, strict=True) if columns else ((),) * len(array)
        valid = array.is_valid().to_pylist()
        return [dict(zip(kind.names, row, strict=True)) if v else None for v, row in zip(valid, rows, strict=True)]
    if kinds.is_floating(kind) and not pc.all(pc.is_finite(array)).as_py():
        return [v if v is None or math.isfinite(v) else json.dumps(v) for v in array.to_pylist()]
    if kinds.is_duration(kind):
        return [None if v is None else _duration(v, _PER_SECOND[kind.unit]) for v in array.cast(pa.int64()).to_pylist()]
    if kinds.is_temporal(kind):
        return _times(array)
    return list(array.to_pylist())


def _split(values: list[Any], lists: pa.ListArray) -> list[list[Any] | None]:
    rest = iter(values)
    return [None if n is None else list(islice(rest, n)) for n in pc.list_value_length(lists).to_pylist()]


def _object(entries: list[tuple[Any, Any]]) -> Any:
    found = dict(entries) if all(isinstance(key, str) for key, _ in entries) else {}
    return found if len(found) == len(entries) else [list(pair) for pair in entries]


def _times(array: pa.Array) -> list[str | None]:
    """Dates and times as text: with a zone in UTC, which needs no data of time zones; far ones as a number of units."""
    zone, unit = getattr(array.type, "tz", None), getattr(array.type, "unit", "days")
    texts = (array.view(pa.timestamp(unit)) if zone else array).cast(pa.string())
    far = pc.binary_join_element_wise(pc.utf8_slice_codeunits(texts, len(_FAR), -1), f"{unit} since 1970", " ")
    texts = pc.if_else(pc.starts_with(texts, _FAR), far, pc.replace_substring(texts, " ", "T"))
    return list((pc.binary_join_element_wise(texts, "Z", "") if zone else texts).to_pylist())


def _duration(count: int, digits: int) -> str:
    """A number of units, 10**-digits seconds each, as text of ISO 8601."""
    return f"PT{Decimal(count).scaleb(-digits):f}S"
