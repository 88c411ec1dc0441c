"""Plain types: the one type of the output for each Arrow type of a source, and the conversion of arrays.

Views, dictionaries and run-end encodings state a value once and use it many times, so a few kilobytes may unpack to
terabytes: an array's size in the plain type is computed before it is converted.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds

_MAX_BYTES = 2**28  # of the text that views, or indices of a dictionary, may stand for in one array
_MAX_VALUES = 2**26  # of the lists in one array
_UUID = "arrow.uuid"


class UnfitTypeError(ValueError):
    """The output cannot hold a type; the message names it."""


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The plain type of a source's type; raises `UnfitTypeError` if there is none.

    Structs without fields, which Parquet cannot hold, are plain: their column becomes JSON text.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return pa.string() if kind.extension_name == _UUID else plain_type(kind.storage_type)
    if kinds.is_dictionary(kind) or kinds.is_run_end_encoded(kind):
        value = plain_type(kind.value_type)
        if kinds.is_nested(value):
            raise UnfitTypeError(f"{kind}, whose values are nested")
        return value
    if _is_text(kind):
        return pa.string()
    if _is_bytes(kind):
        return pa.binary()
    if _is_list(kind):
        return pa.list_(plain_type(kind.value_type))
    if kinds.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if kinds.is_struct(kind):
        fields = [(kind.field(i).name, plain_type(kind.field(i).type)) for i in range(kind.num_fields)]
        if len(dict(fields)) < len(fields):
            raise UnfitTypeError(f"{str(kind)[:200]}, which names a field twice")
        return pa.struct(fields)
    return _plain_leaf(kind)


def _plain_leaf(kind: pa.DataType) -> pa.DataType:
    if kinds.is_decimal(kind):
        digits = max(kind.precision - min(kind.scale, 0), kind.scale)  # Parquet has 0 <= scale <= precision
        return decimal_type(digits, max(kind.scale, 0), kind.bit_width)
    if kinds.is_date(kind):
        return pa.date32()
    if kind == pa.time32("s"):
        return pa.time32("ms")
    if kinds.is_timestamp(kind) and kind.unit == "s":
        return pa.timestamp("ms", kind.tz)
    if any(is_kind(kind) for is_kind in _KEPT):
        return kind
    raise UnfitTypeError(str(kind)[:200])


_KEPT = (
    *(kinds.is_null, kinds.is_boolean, kinds.is_integer, kinds.is_floating),
    *(kinds.is_timestamp, kinds.is_time, kinds.is_duration),
)


def decimal_type(precision: int, scale: int, bits: int = 128) -> pa.DataType:
    """A decimal type of at least 128 and ``bits`` bits; raises `UnfitTypeError` beyond 76 digits."""
    if precision > 76:
        raise UnfitTypeError(f"a decimal of {precision} digits")
    return pa.decimal256(precision, scale) if precision > 38 or bits > 128 else pa.decimal128(precision, scale)


def converted(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """The same values as ``kind``: the plain type of the array's, or one that `common` found for it and others.

    Raises `ValueError` or `pa.ArrowException` for a value that ``kind`` does not hold exactly, and for too many values.
    """
    source = array.type
    if source == kind:
        return array
    if isinstance(source, pa.BaseExtensionType):
        if source.extension_name == _UUID:
            return pa.array([None if value is None else str(value) for value in array.to_pylist()], kind)
        return converted(array.storage, kind)
    if kinds.is_dictionary(source):
        return _taken(array.dictionary, array.indices, kind)
    if kinds.is_run_end_encoded(source):
        rows = np.arange(array.offset, array.offset + len(array))
        return _taken(array.values, pa.array(array.run_ends.to_numpy().searchsorted(rows, "right")), kind)
    if kinds.is_string_view(source) or kinds.is_binary_view(source):
        _check_size(_viewed_bytes(array), _MAX_BYTES, "bytes")
        return array.cast(kind)
    if _is_list(source):
        offsets = _offsets(array)
        inner = converted(array.flatten(), kind.value_type)
        return pa.ListArray.from_arrays(offsets, inner, type=kind, mask=array.is_null())
    if kinds.is_map(source):
        lists = array.cast(pa.list_(pa.struct([("key", source.key_type), ("value", source.item_type)])))
        keys, items = lists.flatten().flatten()
        keys, items = converted(keys, kind.key_type), converted(items, kind.item_type)
        return pa.MapArray.from_arrays(_offsets(lists), keys, items, type=kind, mask=lists.is_null())
    if kinds.is_struct(source):
        parts = dict(zip(source.names, array.flatten(), strict=True))
        fields = [kind.field(i) for i in range(kind.num_fields)]
        inner = [converted(parts[field.name], field.type) for field in fields]
        return pa.StructArray.from_arrays(inner, fields=fields, mask=array.is_null())
    return array.cast(kind)


def plain_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch of a source with the plain types of ``schema``; an error names the column."""
    arrays = [named(field.name, array, field.type) for field, array in zip(schema, batch.columns, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def named(column: str, array: pa.Array, kind: pa.DataType) -> pa.Array:
    """`converted`, with an error of one type that names the column."""
    try:
        return converted(array, kind)
    except (ValueError, OverflowError, pa.ArrowException) as error:
        raise ValueError(f"column {column!r}: {error}") from None


def _taken(values: pa.Array, indices: pa.Array, kind: pa.DataType) -> pa.Array:
    values = converted(values, kind)
    if kinds.is_string(kind) or kinds.is_binary(kind):
        _check_size(pc.sum(pc.binary_length(values).take(indices)).as_py(), _MAX_BYTES, "bytes")
    return values.take(indices)


def _viewed_bytes(array: pa.Array) -> int:
    """Bytes that the views of an array stand for; each of its 16 bytes starts with its length."""
    if not len(array):
        return 0
    views = np.frombuffer(array.buffers()[1], np.int32, 4 * len(array), 16 * array.offset)
    return int(views[::4].sum(dtype=np.int64))


def _check_size(size: int | None, limit: int, unit: str) -> None:
    if (size or 0) > limit:
        raise ValueError(f"{size} {unit} in a few rows; the limit is {limit}")


def _offsets(lists: pa.Array) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.int64)
    _check_size(int(lengths.sum()), _MAX_VALUES, "values")
    return pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32())


def _is_text(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (kinds.is_string, kinds.is_large_string, kinds.is_string_view))


def _is_bytes(kind: pa.DataType) -> bool:
    forms = (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_fixed_size_binary)
    return any(is_kind(kind) for is_kind in forms) and not kinds.is_decimal(kind)


def _is_list(kind: pa.DataType) -> bool:
    views = (kinds.is_list_view, kinds.is_large_list_view)
    return any(is_kind(kind) for is_kind in (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list, *views))
