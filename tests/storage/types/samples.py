"""A column of each Arrow type, with the same values as the output and as JSON must have them."""

import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Sample:
    """``source``: as a file has it; ``stored``: in the output; ``json``: each value as JSON."""

    source: pa.Array
    stored: pa.Array
    json: list[Any]


def _text(kind: pa.DataType) -> Sample:
    texts = ["a", None, "", "é中😀" * 9]
    return Sample(pa.array(texts, kind), pa.array(texts, pa.string()), texts)


def _bytes(kind: pa.DataType) -> Sample:
    values = [b"a\xff", None, b"\\x"]
    return Sample(pa.array(values, kind), pa.array(values, pa.binary()), ["Yf8=", None, "XHg="])


def _same(kind: pa.DataType, values: list[Any], json: list[Any], stored: pa.DataType | None = None) -> Sample:
    return Sample(pa.array(values, kind), pa.array(values, stored or kind), json)


def _integer(kind: pa.DataType) -> Sample:
    bits, signed = kind.bit_width, pa.types.is_signed_integer(kind)
    values = [-(2 ** (bits - 1)) if signed else 0, None, 2 ** (bits - signed) - 1]
    return _same(kind, values, values)


def _decimal(kind: pa.DataType, stored: pa.DataType) -> Sample:
    return _same(kind, [Decimal("-1.10"), None, Decimal("99999.99")], ["-1.10", None, "99999.99"], stored)


def _list(kind: pa.DataType) -> Sample:
    values = [[1, 2], None, [None, 3]]
    return _same(kind, values, values, pa.list_(pa.int64()))


_FAR = 10**11 * 86400  # seconds: 273 million years, which Python's dates do not have
_PAIRS = [[("a", 1), ("b", None)], None, [], [("a", 1), ("a", 2)]]
_UUIDS = [uuid.UUID(int=5), None, uuid.UUID(int=2**128 - 1)]
_TENSOR = pa.fixed_shape_tensor(pa.int32(), [2])

SAMPLES: dict[str, Sample] = {
    "string": _text(pa.string()),
    "large_string": _text(pa.large_string()),
    "string_view": _text(pa.string_view()),
    "binary": _bytes(pa.binary()),
    "large_binary": _bytes(pa.large_binary()),
    "binary_view": _bytes(pa.binary_view()),
    "fixed_size_binary": _bytes(pa.binary(2)),
    "bool": _same(pa.bool_(), [True, None, False], [True, None, False]),
    **{f"int{bits}": _integer(getattr(pa, f"int{bits}")()) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": _integer(getattr(pa, f"uint{bits}")()) for bits in (8, 16, 32, 64)},
    "halffloat": _same(pa.float16(), [1.5, None, -0.0], [1.5, None, -0.0]),
    "float": _same(pa.float32(), [0.1, None, 2.0**127], [0.10000000149011612, None, 2.0**127]),
    "double": _same(
        pa.float64(), [0.1, None, 5e-324, float("inf"), float("nan")], [0.1, None, 5e-324, "Infinity", "NaN"]
    ),
    "decimal32": _decimal(pa.decimal32(7, 2), pa.decimal128(7, 2)),
    "decimal64": _decimal(pa.decimal64(12, 2), pa.decimal128(12, 2)),
    "decimal128": _decimal(pa.decimal128(38, 2), pa.decimal128(38, 2)),
    "decimal256": _decimal(pa.decimal256(60, 2), pa.decimal256(60, 2)),
    "date32": _same(pa.date32(), [20484, None, -800000, 10**7], ["2026-01-31", None, "-0221-09-04", "29349-01-26"]),
    "date64": Sample(
        pa.array([20484 * 86_400_000, None], pa.date64()), pa.array([20484, None], pa.date32()), ["2026-01-31", None]
    ),
    "timestamp[s]": Sample(
        pa.array([1, None, -1], pa.timestamp("s")),
        pa.array([1000, None, -1000], pa.timestamp("ms")),
        ["1970-01-01T00:00:01.000", None, "1969-12-31T23:59:59.000"],
    ),
    "timestamp[ms]": _same(
        pa.timestamp("ms"),
        [1, None, _FAR * 1000],
        ["1970-01-01T00:00:00.001", None, f"{_FAR}000 ms since 1970"],
    ),
    "timestamp[us]": _same(pa.timestamp("us"), [1, None], ["1970-01-01T00:00:00.000001", None]),
    "timestamp[ns]": _same(pa.timestamp("ns"), [1, None], ["1970-01-01T00:00:00.000000001", None]),
    "timestamp[us, tz]": _same(pa.timestamp("us", "Europe/Berlin"), [1, None], ["1970-01-01T00:00:00.000001Z", None]),
    "time32[s]": Sample(
        pa.array([1, None], pa.time32("s")), pa.array([1000, None], pa.time32("ms")), ["00:00:01.000", None]
    ),
    "time32[ms]": _same(pa.time32("ms"), [1, None], ["00:00:00.001", None]),
    "time64[us]": _same(pa.time64("us"), [1, None], ["00:00:00.000001", None]),
    "time64[ns]": _same(pa.time64("ns"), [1, None], ["00:00:00.000000001", None]),
    "duration[s]": _same(pa.duration("s"), [90, None], ["PT90S", None]),
    "duration[ms]": _same(pa.duration("ms"), [-1500, None], ["PT-1.500S", None]),
    "duration[us]": _same(pa.duration("us"), [1, None], ["PT0.000001S", None]),
    "duration[ns]": _same(pa.duration("ns"), [2**62, None], ["PT4611686018.427387904S", None]),
    "list": _list(pa.list_(pa.int64())),
    "large_list": _list(pa.large_list(pa.int64())),
    "list_view": _list(pa.list_view(pa.int64())),
    "large_list_view": _list(pa.large_list_view(pa.int64())),
    "fixed_size_list": _list(pa.list_(pa.int64(), 2)),
    "struct": _same(
        pa.struct([("a", pa.int64()), ("b", pa.string())]),
        [{"a": 1, "b": None}, None, {"a": None, "b": "x"}],
        [{"a": 1, "b": None}, None, {"a": None, "b": "x"}],
    ),
    "map": _same(pa.map_(pa.string(), pa.int64()), _PAIRS, [{"a": 1, "b": None}, None, {}, [["a", 1], ["a", 2]]]),
    "dictionary": Sample(
        pa.array(["x", None, "y", "x"]).dictionary_encode(), pa.array(["x", None, "y", "x"]), ["x", None, "y", "x"]
    ),
    "run_end_encoded": Sample(pc.run_end_encode(pa.array([7, 7, None, 8])), pa.array([7, 7, None, 8]), [7, 7, None, 8]),
    "extension<arrow.uuid>": Sample(
        pa.array([value and value.bytes for value in _UUIDS], pa.uuid()),
        pa.array([value and str(value) for value in _UUIDS]),
        [value and str(value) for value in _UUIDS],
    ),
    "other extension types": Sample(
        pa.ExtensionArray.from_storage(_TENSOR, pa.array([[1, 2], None], _TENSOR.storage_type)),
        pa.array([[1, 2], None], pa.list_(pa.int32())),
        [[1, 2], None],
    ),
    "null": Sample(pa.nulls(2), pa.nulls(2, pa.string()), [None, None]),
}

REFUSED: dict[str, pa.Array] = {
    "month_day_nano_interval": pa.array([pa.MonthDayNano([1, 2, 3])]),
    "dense_union": pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])]),
    "sparse_union": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
    "a dictionary of nested values": pa.DictionaryArray.from_arrays(pa.array([0]), pa.array([["a"]])),
    "a struct that names a field twice": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"]),
}


def in_list(column: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(column), len(column)]), column)


def in_struct(column: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([column, column], ["x", "y"])


def in_map(column: pa.Array) -> pa.Array:
    keys = pa.array([f"k{number}" for number in range(len(column))])
    return pa.MapArray.from_arrays(pa.array([0, 1, len(column)], pa.int32()), keys, column)


def same(stored: Any, given: Any) -> bool:
    """Whether a stored value is the given one of JSON: a whole number may be a double of the same value."""
    if isinstance(stored, dict) and isinstance(given, dict):
        return stored.keys() == given.keys() and all(same(stored[k], given[k]) for k in given)
    if isinstance(stored, list) and isinstance(given, list):
        return len(stored) == len(given) and all(map(same, stored, given))
    return isinstance(stored, bool) == isinstance(given, bool) and bool(stored == given)
