"""Common types: the narrowest type that holds all values of several files or records exactly."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

from .plain import UnfitTypeError, decimal_type, plain_type

_WIDE = 2**53  # beyond it, not every whole number is a double
_MAX_FIELDS = 1000  # of objects that are stored as a struct
_UNITS = ("s", "ms", "us", "ns")
_NULL = pa.null()
_OF_JSON = {str, bool, int, float, list, dict}


@dataclass(frozen=True)
class ColumnType:
    """The type of the values of a column that were seen so far.

    ``kind``: their common type, None if there is none. ``has_wide``: a whole number is beyond 2**53; ``is_mixed``:
    whole numbers met floating point. A double holds both only if it is not both, so that is decided at the end.
    """

    kind: pa.DataType | None = _NULL
    has_wide: bool = False
    is_mixed: bool = False

    def merged(self, other: "ColumnType") -> "ColumnType":
        """The type of the values of both."""
        kind = None if self.kind is None or other.kind is None else _common(self.kind, other.kind)
        mixed = self.kind is not None and other.kind is not None and _is_float(kind, self.kind, other.kind)
        return ColumnType(kind, self.has_wide or other.has_wide, self.is_mixed or other.is_mixed or mixed)

    @property
    def stored(self) -> pa.DataType | None:
        """The type of the output; None for JSON text. A column, or a part of one, without values is text."""
        if self.kind is None or (self.has_wide and self.is_mixed) or _is_unfit(self.kind):
            return None
        return _without_null(self.kind)


def inferred(values: list[Any]) -> ColumnType:
    """The type of JSON values; objects have one if all have the same keys. Python's other values have Arrow's type."""
    found = set(map(type, values)) - {type(None)}
    if not found:
        return ColumnType()
    if found <= {int, float}:
        return _inferred_number([v for v in values if type(v) is int], float in found)
    if found == {str}:
        return ColumnType(pa.string())
    if found == {bool}:
        return ColumnType(pa.bool_())
    if found == {list}:
        inner = inferred(list(chain.from_iterable(v for v in values if v is not None)))
        kind = None if inner.kind is None else pa.list_(inner.kind)
        return ColumnType(kind, inner.has_wide, inner.is_mixed)
    if len(found) == 1 and not found <= _OF_JSON:
        try:
            return ColumnType(plain_type(pa.array(values).type))
        except (ValueError, TypeError, OverflowError, pa.ArrowException):
            return ColumnType(None)
    objects = [v for v in values if v is not None]
    if found != {dict} or any(o.keys() != objects[0].keys() for o in objects) or len(objects[0]) > _MAX_FIELDS:
        return ColumnType(None)
    fields = {name: inferred([o[name] for o in objects]) for name in objects[0]}
    has_wide, is_mixed = (any(getattr(f, flag) for f in fields.values()) for flag in ("has_wide", "is_mixed"))
    if any(f.kind is None for f in fields.values()):
        return ColumnType(None)
    return ColumnType(pa.struct([(name, f.kind) for name, f in fields.items()]), has_wide, is_mixed)


def _inferred_number(whole: list[int], has_float: bool) -> ColumnType:
    low, high = (min(whole), max(whole)) if whole else (0, 0)
    if low < -(2**63) or high >= 2**63:
        return ColumnType(None)
    return ColumnType(pa.float64() if has_float else pa.int64(), max(-low, high) > _WIDE, has_float and bool(whole))


def has_wide(array: pa.Array) -> bool:
    """Whether a plain array holds a whole number beyond 2**53."""
    kind = array.type
    if kind in (pa.int64(), pa.uint64()):
        low, high = pc.min_max(array).as_py().values()
        return low is not None and bool(max(-low, high) > _WIDE)
    if kinds.is_list(kind):
        return has_wide(array.flatten())
    if kinds.is_map(kind):
        return has_wide(array.keys) or has_wide(array.items)
    return bool(kinds.is_struct(kind)) and any(map(has_wide, array.flatten()))


def _common(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds the values of two plain types; None if there is none."""
    if a == b or kinds.is_null(b):
        return a
    if kinds.is_null(a):
        return b
    if kinds.is_list(a) and kinds.is_list(b):
        inner = _common(a.value_type, b.value_type)
        return None if inner is None else pa.list_(inner)
    if kinds.is_map(a) and kinds.is_map(b):
        key, item = _common(a.key_type, b.key_type), _common(a.item_type, b.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if kinds.is_struct(a) and kinds.is_struct(b):
        fields = [(name, _common(a.field(name).type, b.field(name).type)) for name in a.names if name in b.names]
        same = len(fields) == a.num_fields == b.num_fields
        return pa.struct(fields) if same and all(kind is not None for _, kind in fields) else None
    return _common_number(a, b) or _common_time(a, b)


def _common_number(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    numbers = [kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind) for kind in (a, b)]
    if not all(numbers):
        return None
    if kinds.is_decimal(a) or kinds.is_decimal(b):
        return None if kinds.is_floating(a) or kinds.is_floating(b) else _common_decimal(a, b)
    if kinds.is_floating(a) and kinds.is_floating(b):
        return max(a, b, key=lambda kind: kind.bit_width)
    if kinds.is_floating(a) or kinds.is_floating(b):
        return pa.float64()
    signed = {kinds.is_signed_integer(kind): kind for kind in (a, b)}
    if len(signed) == 1:
        return max(a, b, key=lambda kind: kind.bit_width)
    bits = max(signed[True].bit_width, 2 * signed[False].bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(bits)


def _common_decimal(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    digits = [(k.precision, k.scale, k.bit_width) if kinds.is_decimal(k) else (20, 0, 128) for k in (a, b)]
    scale = max(scale for _, scale, _ in digits)
    try:
        whole = max(precision - scale for precision, scale, _ in digits)
        return decimal_type(whole + scale, scale, max(bits for *_, bits in digits))
    except UnfitTypeError:
        return None


def _common_time(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The finer unit of two timestamps of one zone, of two times of the day, or of two durations."""
    for is_kind in (kinds.is_timestamp, kinds.is_time, kinds.is_duration):
        if is_kind(a) and is_kind(b) and getattr(a, "tz", None) == getattr(b, "tz", None):
            return max(a, b, key=lambda kind: _UNITS.index(kind.unit))
    return None


def _is_float(kind: pa.DataType | None, a: pa.DataType, b: pa.DataType) -> bool:
    """Whether whole numbers of one of two types, or of their parts, are floating point in their common type."""
    if kind is None or a == b:
        return False
    if kinds.is_floating(kind):
        return bool(kinds.is_integer(a) or kinds.is_integer(b))
    if kinds.is_nested(kind) and not (kinds.is_null(a) or kinds.is_null(b)):
        parts = [kind.field(i) for i in range(kind.num_fields)]
        if kinds.is_struct(kind):
            return any(_is_float(f.type, a.field(f.name).type, b.field(f.name).type) for f in parts)
        return any(_is_float(f.type, a.field(i).type, b.field(i).type) for i, f in enumerate(parts))
    return False


def _is_unfit(kind: pa.DataType) -> bool:
    """Whether Parquet cannot hold a type: it has no structs without fields."""
    if kinds.is_struct(kind) and not 0 < kind.num_fields <= _MAX_FIELDS:
        return True
    return any(_is_unfit(kind.field(i).type) for i in range(kind.num_fields))


def _without_null(kind: pa.DataType) -> pa.DataType:
    if kinds.is_null(kind):
        return pa.string()
    if kinds.is_list(kind):
        return pa.list_(_without_null(kind.value_type))
    if kinds.is_map(kind):
        return pa.map_(_without_null(kind.key_type), _without_null(kind.item_type))
    if kinds.is_struct(kind):
        return pa.struct([(kind.field(i).name, _without_null(kind.field(i).type)) for i in range(kind.num_fields)])
    return kind
