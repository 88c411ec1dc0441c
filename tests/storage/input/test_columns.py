import datetime
from decimal import Decimal
from typing import Any

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Conversation, Record
from pipeline.storage.input.columns import Columns, content_hash, record_text, row_text
from pipeline.storage.input.formats import InputRow
from pipeline.storage.input.formats.jsonl import parse_line
from pipeline.storage.input.read import staged_table

MESSAGES = [{"role": "user", "content": "hi"}]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
texts = st.text(st.characters(exclude_categories=["Cs"]))
objects = st.dictionaries(texts, json_values, max_size=5)


def record(values: dict[str, Any], **columns: str) -> Record:
    return Columns(**columns).record(7, InputRow(values))


def error(values: dict[str, Any], **columns: str) -> tuple[str, str]:
    made = record(values, **columns)
    assert made.dead is not None
    return made.dead.error_type, made.dead.message


def test_an_id_of_text_is_kept_as_it_is() -> None:
    assert record({"id": " 007 ", "prompt": "p"}) == Record(7, " 007 ", "p")


@pytest.mark.parametrize("number", [0, -3, 2**63, 10**30])
def test_a_whole_number_is_an_id(number: int) -> None:
    assert record({"id": number, "prompt": "p"}).id == str(number)


@pytest.mark.parametrize("values", [{"prompt": "p"}, {"prompt": "p", "id": None}, {"prompt": "p", "id": ""}])
def test_a_row_without_an_id_gets_a_hash_of_its_content(values: dict[str, Any]) -> None:
    made = record(values)
    assert made.id == content_hash(values)
    assert made.dead is None


@given(objects, st.randoms(use_true_random=False))
def test_the_content_hash_ignores_the_order_of_columns(values: dict[str, Any], random: Any) -> None:
    items = list(values.items())
    random.shuffle(items)
    assert content_hash(dict(items)) == content_hash(values)


@pytest.mark.long
@given(objects, objects)
def test_the_content_hash_differs_for_different_rows(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert (content_hash(a) == content_hash(b)) == (row_text(a) == row_text(b))


@pytest.mark.parametrize(("number", "text"), [("0", "0"), ("12.00", "12"), ("1E+3", "1000"), ("9" * 38, "9" * 38)])
def test_a_whole_decimal_is_an_id(number: str, text: str) -> None:
    assert record({"id": Decimal(number), "prompt": "p"}).id == text


@pytest.mark.parametrize("value", [1.5, True, ["a"], {"a": 1}, Decimal("1.5")])
def test_an_id_of_another_type_is_a_dead_letter_with_the_whole_row(value: object) -> None:
    values = {"id": value, "prompt": "p", "extra": 1}
    assert error(values)[0] == "BadId"
    made = record(values)
    assert made.id == content_hash(values)
    assert made.raw == row_text(values)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"id": "a"}, "MissingPrompt"),
        ({"prompt": None, "messages": None}, "MissingPrompt"),
        ({"prompt": ""}, "BadPrompt"),
        ({"prompt": " \n"}, "BadPrompt"),
        ({"prompt": 5}, "BadPrompt"),
        ({"prompt": ["p"]}, "BadPrompt"),
        ({"messages": []}, "BadMessages"),
        ({"messages": "hi"}, "BadMessages"),
        ({"messages": [{"role": "user"}]}, "BadMessages"),
        ({"messages": [{"role": 1, "content": "x"}]}, "BadMessages"),
        ({"messages": ["hi"]}, "BadMessages"),
    ],
)
def test_a_row_without_a_usable_prompt_is_a_dead_letter(values: dict[str, Any], expected: str) -> None:
    assert error(values)[0] == expected


def test_the_message_of_a_dead_letter_names_the_column() -> None:
    assert "'question'" in error({"question": 3}, prompt="question")[1]
    assert "'chat'" in error({"chat": 3}, messages="chat")[1]
    assert "'key'" in error({"key": 1.5}, id="key")[1]


def test_messages_are_a_prompt_and_a_prompt_goes_before_them() -> None:
    assert record({"id": "a", "messages": MESSAGES}).prompt == Conversation(MESSAGES)
    assert record({"id": "a", "messages": MESSAGES, "prompt": "p"}).prompt == "p"


def test_columns_can_have_other_names() -> None:
    values = {"key": "k", "question": "q", "id": 5, "prompt": "not it"}
    made = record(values, id="key", prompt="question")
    assert (made.id, made.prompt, made.passed) == ("k", "q", {"id": 5, "prompt": "not it"})


@given(objects)
def test_all_other_columns_are_passed_through(values: dict[str, Any]) -> None:
    others = {k: v for k, v in values.items() if k not in ("id", "prompt", "messages")}
    assert record({**values, "prompt": "p"}).passed == others


def test_a_line_that_could_not_be_parsed_keeps_its_dead_letter() -> None:
    row = parse_line(b"{broken")
    made = Columns().record(3, row)
    assert (made.row, made.dead, made.raw, made.prompt) == (3, row.dead, "{broken", None)
    assert made.id == content_hash("{broken")


def test_values_that_json_does_not_know_become_text() -> None:
    values = {"d": datetime.date(2024, 2, 29), "b": b"a\xff", "n": Decimal("1.50")}
    assert orjson.loads(row_text(values)) == {"d": "2024-02-29", "b": "Yf8=", "n": "1.50"}


def test_record_text_is_the_line_or_the_values() -> None:
    assert record_text(Record(0, "a", raw="line")) == "line"
    assert orjson.loads(record_text(Record(0, "a", "p", {"x": 1}))) == {"id": "a", "prompt": "p", "x": 1}
    assert orjson.loads(record_text(Record(0, "a", Conversation(MESSAGES)))) == {"id": "a", "messages": MESSAGES}


OWN = {"sampling": "own", "choices": "labels"}


@pytest.mark.parametrize(
    ("values", "sampling"),
    [
        ({}, None),
        ({"own": None, "labels": None}, None),
        ({"own": "", "labels": " "}, None),  # CSV
        ({"own": {}, "labels": []}, None),
        ({"own": {"temperature": 1, "top_p": None}}, {"temperature": 1, "top_p": None}),
        ({"own": '{"temperature": 1}'}, {"temperature": 1}),
        ({"labels": ["a", "b"]}, {"choices": ["a", "b"]}),
        ({"labels": '["a"]', "own": {"choices": None, "n": 1}}, {"choices": ["a"], "n": 1}),
    ],
)
def test_settings_of_a_record_are_read_and_passed_through(
    values: dict[str, Any], sampling: dict[str, Any] | None
) -> None:
    made = record({"id": "a", "prompt": "p", **values}, **OWN)
    assert (made.sampling, made.passed, made.dead) == (sampling, values, None)
    assert record({"id": "a", "prompt": "p", **values}).sampling is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"own": [1]}, ("BadSampling", "column 'own' is neither an object nor the JSON of one")),
        ({"own": "temperature=1"}, ("BadSampling", "column 'own' is neither an object nor the JSON of one")),
        (
            {"labels": "a"},
            ("BadChoices", "column 'labels' is neither a list of texts (none empty) nor the JSON of one"),
        ),
        (
            {"labels": ["a", ""]},
            ("BadChoices", "column 'labels' is neither a list of texts (none empty) nor the JSON of one"),
        ),
        ({"labels": ["a"], "own": {"choices": ["b"]}}, ("BadChoices", "columns 'labels' and 'own' both give choices")),
    ],
)
def test_settings_of_another_shape_are_dead_letters(values: dict[str, Any], expected: tuple[str, str]) -> None:
    assert error({"id": "a", "prompt": "p", **values}, **OWN) == expected


def test_settings_keep_their_order_in_the_staged_table() -> None:
    """A JSON schema's properties are generated in theirs."""
    schema = {"properties": {"b": {}, "a": {}}}
    table = staged_table([record({"id": "a", "prompt": "p", "own": {"json_schema": schema}}, **OWN)], pa.schema([]))
    assert table["sampling"].to_pylist() == ['{"json_schema":{"properties":{"b":{},"a":{}}}}']
