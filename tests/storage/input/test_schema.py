import io
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.exact_json import loads
from pipeline.storage.input.schema import SchemaFinder, passed_table
from tests.storage.types.samples import same

Rows = list[dict[str, Any]]
JSON_METADATA = {b"loraloom": b"json"}


def schema_of(*chunks: Rows) -> pa.Schema:
    finder = SchemaFinder()
    for chunk in chunks:
        finder.add(chunk)
    return finder.schema()


def column(*chunks: list[Any]) -> tuple[pa.Field, list[Any]]:
    """Field and stored values of one column that comes in chunks."""
    rows = [[{"c": value} for value in chunk] for chunk in chunks]
    schema = schema_of(*rows)
    return schema.field("c"), passed_table([r for chunk in rows for r in chunk], schema)["c"].to_pylist()


def is_json(field: pa.Field) -> bool:
    return bool(field.type == pa.string() and field.metadata == JSON_METADATA)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, -5], pa.int64()),
        (["a", None], pa.string()),
        ([0.5, None], pa.float64()),
        ([True, False], pa.bool_()),
        ([[1], [], None], pa.list_(pa.int64())),
        ([{"a": 1, "b": None}, {"b": "x", "a": 2}], pa.struct([("a", pa.int64()), ("b", pa.string())])),
        ([[], None], pa.list_(pa.string())),
        ([None, None], pa.string()),
    ],
)
def test_a_column_of_one_kind_keeps_its_type(values: list[Any], kind: pa.DataType) -> None:
    field, _ = column(values)
    assert (field.type, field.metadata) == (kind, None)


@pytest.mark.parametrize("value", [datetime(2026, 1, 31), date(2026, 1, 31), Decimal("1.10"), b"x"], ids=str)
def test_values_of_python_that_json_does_not_have_keep_their_type(value: Any) -> None:
    _, stored = column([value, None], [value])
    assert stored == [value, None, value]
    assert is_json(column([value, "text"])[0])


@pytest.mark.parametrize("chunks", [([1, 2.5],), ([1], [2.5]), ([2.5], [1]), ([None], [1], [None, 2.5])])
def test_whole_numbers_widen_to_floating_point(chunks: tuple[list[Any], ...]) -> None:
    field, values = column(*chunks)
    assert field.type == pa.float64()
    assert {1.0, 2.5} <= set(values)


def test_numbers_in_nested_values_widen_too() -> None:
    field, values = column([{"a": [1]}], [{"a": [1.5]}])
    assert field.type == pa.struct([("a", pa.list_(pa.float64()))])
    assert values == [{"a": [1.0]}, {"a": [1.5]}]


WIDE = 2**60 + 1


@pytest.mark.parametrize(
    ("wide", "other"), [(WIDE, 0.5), ([WIDE], [0.5]), ({"a": [WIDE]}, {"a": [0.5]})], ids=["plain", "list", "object"]
)
@pytest.mark.parametrize("apart", [True, False])
def test_whole_numbers_beyond_53_bits_next_to_floats_are_json_text(wide: Any, other: Any, apart: bool) -> None:
    field, values = column([wide], [other]) if apart else column([wide, other])
    assert is_json(field)
    assert [loads(text) for text in values] == [wide, other]


MIXED = [[1, "a"], [True, 1], [[1], "a"], [[1], {"a": 1}], [[1], ["a"]], [{"a": 1}, {"a": "x"}]]


@pytest.mark.parametrize("values", MIXED, ids=str)
def test_values_without_a_common_type_become_json_text_together_or_apart(values: list[Any]) -> None:
    for chunks in ([values], [values[:1], values[1:]], [values[1:], values[:1]], [[None], *([v] for v in values)]):
        field, stored = column(*chunks)
        assert is_json(field)
        assert sorted(v for v in stored if v) == sorted(orjson.dumps(v).decode() for v in values)


@pytest.mark.parametrize("values", [[{}], [[{}]], [{"a": {}}], [{"a": [{"b": {}}]}]], ids=str)
def test_empty_objects_that_parquet_cannot_hold_become_json_text(values: list[Any]) -> None:
    field, stored = column(values)
    assert is_json(field)
    assert [orjson.loads(v) for v in stored] == values


@pytest.mark.parametrize(
    "chunks", [([2**63],), ([1], [2**63]), ([2**63], [1]), ([-1, 2**64 - 1],), ([10**40, -(2**63) - 1],)]
)
def test_integers_over_63_bits_are_kept_exactly(chunks: tuple[list[Any], ...]) -> None:
    field, stored = column(*chunks)
    assert is_json(field)
    assert [loads(v) for v in stored] == [v for chunk in chunks for v in chunk]


def test_columns_come_in_the_order_in_which_they_first_appear() -> None:
    assert schema_of([{"b": 1}, {"a": 1}], [{"c": 1, "a": 2}]).names == ["b", "a", "c"]
    assert schema_of([], [{}]).names == []


def test_a_row_without_a_column_has_null_there() -> None:
    rows: Rows = [{"a": 1}, {"b": "x"}]
    assert passed_table(rows, schema_of(rows)).to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


def test_stated_types_are_taken_and_merged_with_found_ones() -> None:
    finder = SchemaFinder()
    finder.add_schema(pa.schema([("when", pa.timestamp("us")), ("n", pa.int32()), ("same", pa.string())]))
    finder.add([{"n": 2**40, "when": "yesterday", "same": "x"}])
    schema = finder.schema()
    assert schema.field("n").type == pa.int64()
    assert schema.field("same").type == pa.string()
    assert is_json(schema.field("when"))


texts = st.text(max_size=4)
values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from([None, True, 0, 1, 2.5, "x", 2**53 + 1, 2**62, 2**63, 2**64, -(2**63) - 1, 1e300, [], {}])
    | st.integers(-(2**70), 2**70),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "b", ""]), inner, max_size=2),
    max_leaves=4,
)
chunk_lists = st.lists(st.lists(st.dictionaries(st.sampled_from(["c", "d"]), values), max_size=4), max_size=4)


@pytest.mark.long
@given(chunk_lists)
def test_any_json_values_are_stored_in_parquet_and_come_back(chunks: list[Rows]) -> None:
    schema = schema_of(*chunks)
    rows = [row for chunk in chunks for row in chunk]
    buffer = io.BytesIO()
    pq.write_table(passed_table(rows, schema), buffer)
    for field in schema:
        stored = pq.read_table(buffer)[field.name].to_pylist()
        if is_json(field):
            stored = [None if text is None else loads(text) for text in stored]
        given_values = [row.get(field.name) for row in rows]
        assert all(map(same, stored, given_values)), (stored, given_values)


@pytest.mark.long
@given(chunk_lists, st.randoms(use_true_random=False))
def test_the_order_of_chunks_does_not_decide_what_is_json(chunks: list[Rows], random: Any) -> None:
    shuffled = random.sample(chunks, len(chunks))
    # The fields of an object come in the order in which they first appear.
    kinds = [{f.name: "json" if is_json(f) else sorted(str(f.type)) for f in schema_of(*c)} for c in (chunks, shuffled)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("count", [2, 300])
def test_objects_with_keys_of_their_own_are_kept_as_they_were(count: int) -> None:
    scores = [{f"doc{n}": 0.5, f"doc{n + 1}": 1} for n in range(count)]
    for chunks in ([scores], [scores[:1], scores[1:]]):
        field, stored = column(*chunks)
        assert is_json(field)
        assert stored == [f'{{"doc{n}":0.5,"doc{n + 1}":1}}' for n in range(count)]


def test_an_absent_key_is_not_a_null() -> None:
    field, stored = column([{"a": 1, "b": None}, {"a": 2}])
    assert is_json(field)
    assert stored == ['{"a":1,"b":null}', '{"a":2}']


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array([Decimal("1.10")], pa.decimal128(10, 2)), pa.array([0.5])),
        (pa.array([-1]), pa.array([2**63], pa.uint64())),
        (pa.array([{"a": [-1]}]), pa.array([{"a": [2**63]}], pa.struct([("a", pa.list_(pa.uint64()))]))),
    ],
)
def test_types_that_have_no_common_place_for_all_values_become_json(one: pa.Array, other: pa.Array) -> None:
    finder = SchemaFinder()
    for array in (one, other):
        finder.add_schema(pa.schema([("c", array.type)]))
    schema = finder.schema()
    assert is_json(schema.field("c"))


@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=4), st.integers(0, 4))
def test_whole_numbers_of_any_size_are_kept(values: list[int], cut: int) -> None:
    _, stored = column(*(part for part in (values[:cut], values[cut:]) if part))
    assert [int(value) for value in stored] == values
