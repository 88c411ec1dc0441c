"""The table of types in docs/output.md, for each Arrow type in each reader that can hold it."""

import io
import re
import uuid
from collections.abc import Callable, Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.exact_json import dumps, loads
from pipeline.records import Record
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.plan import InputPlan, plan_input
from pipeline.storage.input.read import read_split, staged_table, staged_tables
from pipeline.storage.types.values import is_json_text, python_rows
from tests.storage import memory_url, write_file

from .samples import REFUSED, SAMPLES, in_list, in_map, in_struct

_TABLE = "| Arrow type | in the output | as JSON |"


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _stream(table: pa.Table, new: Callable[..., Any] = pa.ipc.new_stream) -> bytes:
    buffer = io.BytesIO()
    with new(buffer, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return buffer.getvalue()


def _file(table: pa.Table) -> bytes:
    return _stream(table, pa.ipc.new_file)


READERS = {".parquet": _parquet, ".arrow": _stream, ".feather": _file}
NOT_IN_PARQUET = {"run_end_encoded", *REFUSED} - {"a struct that names a field twice"}


def in_readers(names: Iterable[str]) -> list[tuple[str, str]]:
    """Each name with each reader that can hold a column of its type."""
    return [(n, suffix) for n in names for suffix in READERS if suffix != ".parquet" or n not in NOT_IN_PARQUET]


def planned(*files: tuple[str, bytes]) -> tuple[InputPlan, list[Record]]:
    """The plan of a folder of files, each with its suffix, and their records."""
    url = memory_url()
    for number, (suffix, content) in enumerate(files):
        write_file(f"{url}/{number}{suffix}", content)
    plan = plan_input(url, 1000, Columns())
    return plan, [record for split in plan.splits(0) for record in read_split(url, split, Columns(), {})]


def stored(*files: tuple[str, bytes]) -> tuple[pa.Field, pa.Array]:
    """The column ``c`` of the output for files of these suffixes."""
    plan, records = planned(*files)
    assert [record.dead for record in records] == [None] * len(records)
    buffer = io.BytesIO()
    pq.write_table(staged_table(records, plan.passed), buffer)
    column = pq.read_table(buffer)["in.c"].combine_chunks()
    return plan.passed.field("c"), column


def written(column: pa.Array, suffix: str) -> tuple[str, bytes]:
    """A file with the column ``c``."""
    prompts = pa.array([f"p{number}" for number in range(len(column))])
    table = pa.table({"id": prompts, "prompt": prompts, "c": column})
    return suffix, READERS[suffix](table)


def in_parts(column: pa.Array) -> pa.Array:
    """A slice of a longer column."""
    return pa.concat_arrays([column, column]).slice(1, len(column))


def equal(found: pa.Array, expected: pa.Array) -> bool:
    """Whether arrays have the same type and values; repr compares NaN and -0.0 too."""
    return found.type == expected.type and repr(python_rows(pa.table({"c": found}))) == repr(
        python_rows(pa.table({"c": expected}))
    )


@pytest.mark.parametrize(("name", "suffix"), in_readers(SAMPLES))
def test_each_arrow_type_is_stored_exactly_as_its_plain_type(name: str, suffix: str) -> None:
    sample = SAMPLES[name]
    _, column = stored(written(sample.source, suffix))
    assert equal(column, sample.stored)
    exported = [orjson.loads(dumps(row))["c"] for row in python_rows(pa.table({"c": column}))]
    assert repr(exported) == repr(sample.json)


@pytest.mark.parametrize("place", [in_list, in_struct, in_map, in_parts])
@pytest.mark.parametrize(("name", "suffix"), in_readers(SAMPLES))
def test_each_arrow_type_is_stored_exactly_inside_another(
    name: str, suffix: str, place: Callable[[pa.Array], pa.Array]
) -> None:
    sample = SAMPLES[name]
    _, column = stored(written(place(sample.source), suffix))
    assert equal(column, place(sample.stored))


@pytest.mark.parametrize("place", [None, in_list, in_struct])
@pytest.mark.parametrize(("name", "suffix"), in_readers(REFUSED))
def test_types_that_the_output_cannot_hold_are_refused_by_the_name_of_the_column(
    name: str, suffix: str, place: Callable[[pa.Array], pa.Array] | None
) -> None:
    column = REFUSED[name] if place is None else place(REFUSED[name])
    with pytest.raises(UserError, match=r"0\.\w+: the column 'c' is of the type .*Parquet cannot hold"):
        stored(written(column, suffix))


def test_a_struct_without_fields_is_json_text() -> None:
    field, column = stored(written(pa.array([{}, None], pa.struct([])), ".arrow"))
    assert is_json_text(field)
    assert column.to_pylist() == ["{}", None]


@pytest.mark.parametrize(("scale", "digits", "value"), [(7, 7, "0.0000123"), (-2, 7, "12300")])
def test_decimals_get_the_digits_that_parquet_wants(scale: int, digits: int, value: str) -> None:
    buffers = pa.array([Decimal(123)], pa.decimal128(5, 0)).buffers()
    _, column = stored(written(pa.Array.from_buffers(pa.decimal128(5, scale), 1, buffers), ".arrow"))
    assert column.type == pa.decimal128(digits, max(scale, 0))
    assert column.to_pylist() == [Decimal(value)]


def test_the_table_in_the_docs_says_the_same() -> None:
    lines = Path("docs/output.md").read_text().split(_TABLE)[1].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    stated = {name: output for names, output, *_ in rows for name in names.replace("`", "").split("; ")}
    assert stated.keys() == SAMPLES.keys() | REFUSED.keys()
    for name, output in stated.items():
        if name in REFUSED:
            assert output.startswith("refused")
        else:
            sample = SAMPLES[name]
            kind = re.sub(r"<.*|\(.*|\[day\]", "", str(sample.stored.type))
            expected = {f"`{kind}`", "the same" if sample.source.type == sample.stored.type else "that of its values"}
            assert output.partition(",")[0] in expected, name


def json_lines(*values: str) -> tuple[str, bytes]:
    return ".jsonl", "".join(f'{{"prompt": "p{n}", "c": {value}}}\n' for n, value in enumerate(values)).encode()


WIDE = "9007199254740993"
JSON_VALUES: list[tuple[list[str], pa.DataType | None]] = [
    (['"a"', "null"], pa.string()),
    (["true", "false"], pa.bool_()),
    (["1", "-9223372036854775808", "9223372036854775807"], pa.int64()),
    (["9223372036854775808"], None),
    (["18446744073709551616", "1"], None),
    (["-123456789012345678901234567890", '{"a": 1}'], None),
    (["[1, 18446744073709551616]"], None),
    (["0.1", "1e300"], pa.float64()),
    (["1", "0.5"], pa.float64()),
    (["9007199254740992", "0.5"], pa.float64()),
    ([WIDE, "0.5"], None),
    ([f"[{WIDE}]", "[0.5]"], None),
    (["[]", "[[1]]"], pa.list_(pa.list_(pa.int64()))),
    (
        ['{"a": 1, "b": {"c": "x"}}', '{"b": {"c": null}, "a": 2}'],
        pa.struct([("a", pa.int64()), ("b", pa.struct([("c", pa.string())]))]),
    ),
    (['{"a": 1}', '{"a": 1, "b": null}'], None),
    (['{"doc0": 0.5, "doc1": 1}', '{"doc1": 0.5, "doc2": 1}'], None),
    (["{}"], None),
    (["1", '"1"'], None),
    (["true", "1"], None),
]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("values", "kind"), JSON_VALUES, ids=str)
def test_each_json_value_is_stored_exactly(values: list[str], kind: pa.DataType | None, apart: bool) -> None:
    field, column = stored(*(map(json_lines, values) if apart else [json_lines(*values)]))
    given = list(map(loads, values))
    if kind is None:
        assert is_json_text(field)
        assert column.to_pylist() == [dumps(value) for value in given]
    else:
        assert field == pa.field("c", kind)
        assert column.to_pylist() == given


def test_csv_stays_text() -> None:
    field, column = stored((".csv", b"prompt,c\np,007\nq,1e5\n"))
    assert (field.type, column.to_pylist()) == (pa.string(), ["007", "1e5"])


def parquet(values: list[Any], kind: pa.DataType) -> tuple[str, bytes]:
    return written(pa.array(values, kind), ".parquet")


ns, us, berlin = pa.timestamp("ns"), pa.timestamp("us"), pa.timestamp("us", "Europe/Berlin")
AGREEING: list[tuple[tuple[str, bytes], tuple[str, bytes], pa.DataType, list[Any]]] = [
    (parquet(["x"], pa.string()), parquet(["y"], pa.string_view()), pa.string(), ["x", "y"]),
    (parquet([2**53], pa.int64()), parquet([0.5], pa.float64()), pa.float64(), [2.0**53, 0.5]),
    (parquet([0.5], pa.float32()), json_lines("1"), pa.float64(), [0.5, 1.0]),
    (parquet([1], pa.int8()), parquet([255], pa.uint8()), pa.int16(), [1, 255]),
    (parquet([1], pa.int32()), json_lines(str(2**62)), pa.int64(), [1, 2**62]),
    (parquet([1], pa.timestamp("ms")), parquet([1], ns), ns, [10**6, 1]),
    (parquet([1], pa.duration("s")), parquet([1], pa.duration("us")), pa.duration("us"), [10**6, 1]),
    (parquet([None], pa.null()), parquet([1], pa.time64("us")), pa.time64("us"), [None, 1]),
]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("one", "other", "kind", "values"), AGREEING, ids=lambda v: str(v)[:20])
def test_files_that_disagree_get_the_narrowest_type_that_holds_all_values(
    one: tuple[str, bytes], other: tuple[str, bytes], kind: pa.DataType, values: list[Any], turned: bool
) -> None:
    field, column = stored(*((other, one) if turned else (one, other)))
    assert field == pa.field("c", kind)
    assert column.equals(pa.array(values[::-1] if turned else values, kind))


DISAGREEING: list[tuple[tuple[str, bytes], tuple[str, bytes], list[Any]]] = [
    (parquet([2**53 + 1], pa.int64()), parquet([0.5], pa.float64()), [2**53 + 1, 0.5]),
    (parquet([[2**53 + 1]], pa.list_(pa.int64())), json_lines("[0.5]"), [[2**53 + 1], [0.5]]),
    (parquet([2**64 - 1], pa.uint64()), parquet([-1], pa.int64()), [2**64 - 1, -1]),
    (parquet([1], pa.int32()), parquet(["x"], pa.string()), [1, "x"]),
    (parquet([1], us), parquet([1], berlin), ["1970-01-01T00:00:00.000001", "1970-01-01T00:00:00.000001Z"]),
    (parquet([{"a": 1}], pa.struct([("a", pa.int8())])), json_lines('{"a": 1, "b": 2}'), [{"a": 1}, {"a": 1, "b": 2}]),
    (parquet([0.5], pa.float64()), json_lines(str(2**70)), [0.5, 2**70]),
    (parquet([float("nan")], pa.float64()), json_lines('"x"'), ["NaN", "x"]),
]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("one", "other", "values"), DISAGREEING, ids=lambda v: str(v)[:20])
def test_files_without_a_common_type_get_json_text(
    one: tuple[str, bytes], other: tuple[str, bytes], values: list[Any], turned: bool
) -> None:
    field, column = stored(*((other, one) if turned else (one, other)))
    assert is_json_text(field)
    assert [loads(text) for text in column.to_pylist()] == (values[::-1] if turned else values)


def test_a_time_that_the_finer_unit_cannot_hold_is_a_dead_letter_that_names_the_column() -> None:
    far = [int(np.datetime64("9999-12-31T00:00:00").astype(np.int64)) * 10**6]
    plan, records = planned(parquet([1], ns), parquet(far, us))
    (table,) = staged_tables(iter(records), plan.passed, 512)
    dead = table["dead"].to_pylist()
    assert dead[0] is None
    assert dead[1]["error_type"] == "InvalidValue"
    assert "column 'c'" in dead[1]["message"]


def special(name: str, array: pa.Array) -> tuple[str, bytes]:
    """A file with a prompt and an id, one of which is given."""
    columns = {"id": pa.array(["a"] * len(array)), "prompt": pa.array(["p"] * len(array))} | {name: array}
    return ".arrow", _stream(pa.table(columns))


@pytest.mark.parametrize("name", ["string", "large_string", "string_view", "dictionary"])
def test_ids_and_prompts_may_be_of_any_type_of_text(name: str) -> None:
    texts = (
        pa.array(["x", "y"]).dictionary_encode() if name == "dictionary" else pa.array(["x", "y"], getattr(pa, name)())
    )
    _, records = planned(special("prompt", texts), special("id", texts))
    assert [(record.id, record.prompt, record.dead and record.dead.error_type) for record in records] == [
        ("a", "x", None),
        ("a", "y", None),
        ("x", "p", None),
        ("y", "p", None),
    ]


IDS = [
    (pa.array([Decimal("0"), Decimal("9" * 38)], pa.decimal128(38, 0)), ["0", "9" * 38]),
    (pa.array([Decimal("12.00")]), ["12"]),
    (pa.array([uuid.UUID(int=1).bytes], pa.uuid()), ["00000000-0000-0000-0000-000000000001"]),
    (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
]


@pytest.mark.parametrize(("ids", "texts"), IDS, ids=lambda v: str(v)[:10])
def test_whole_decimals_and_uuids_are_ids(ids: pa.Array, texts: list[str]) -> None:
    _, records = planned(special("id", ids))
    assert [(record.id, record.dead) for record in records] == [(text, None) for text in texts]


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("id", pa.array([1.0])),
        ("id", pa.array([True])),
        ("id", pa.array([1], pa.date32())),
        ("id", pa.array([b"x"])),
        ("id", pa.array([["a"]])),
        ("prompt", pa.array([b"x"])),
        ("prompt", pa.array([5])),
    ],
    ids=str,
)
def test_a_type_that_no_id_or_prompt_can_have_is_one_message(name: str, array: pa.Array) -> None:
    with pytest.raises(UserError, match=rf"0\.arrow: the column '{name}' is of the type .*input\.{name}_column"):
        planned(special(name, array))


def test_json_text_of_a_run_is_json_when_it_is_read_again() -> None:
    field, column = stored(json_lines("1", '{"b": 1, "a": 18446744073709551616}'))
    prompts = pa.array(["p", "q"])
    schema = pa.schema([("prompt", pa.string()), field])
    again, same = stored((".parquet", _parquet(pa.table([prompts, column], schema=schema))))
    assert is_json_text(again)
    assert same.equals(column)
    assert python_rows(pa.table([same], schema=pa.schema([again])))[1] == {"c": {"b": 1, "a": 2**64}}


def test_rows_out_of_order_keep_their_values() -> None:
    plan, records = planned(parquet([10, 11, 12, 13], pa.int8()))
    for chosen in ([2, 0, 1], [0, 2], [3, 3], [1, 2, 3]):
        table = staged_table([records[index] for index in chosen], plan.passed)
        assert table["in.c"].to_pylist() == [10 + index for index in chosen]
