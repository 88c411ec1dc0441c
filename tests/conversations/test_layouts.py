"""The same conversation in every layout and every file format has the same prompt."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.conversations import PromptSettings
from pipeline.errors import UserError
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.records import Conversation, Prompt, Record
from pipeline.stages.tables import prompts_of
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split, staged_table
from tests.storage import memory_url, write_file

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a colour."}
TALK = [SYSTEM, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, USER]
IN_PARTS = [{**m, "content": [{"type": "text", "text": part} for part in m["content"].partition(" ")]} for m in TALK]
TURNS = [
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "human", "value": "Name a colour."},
]
BODY = {"model": "m", "messages": IN_PARTS, "max_tokens": 3}
REQUEST = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": BODY}

PLAIN = Columns()
OPENAI = Columns("custom_id", sampling="sampling", layout="openai_batch")
SHAREGPT = Columns(messages="conversations", layout="sharegpt")
ALPACA = Columns(prompt="instruction", layout="alpaca")


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    """CSV with nested values as JSON text, and nulls as empty text."""
    file = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.writer(file)
    writer.writerow(names)
    for row in rows:
        values = (row.get(name) for name in names)
        writer.writerow(["" if v is None else v if isinstance(v, str) else json.dumps(v) for v in values])
    return file.getvalue().encode()


def as_table(rows: list[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(as_table(rows), file)
    return file.getvalue()


def as_arrow(rows: list[dict[str, Any]]) -> bytes:
    table, file = as_table(rows), io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


WRITERS = {"jsonl": as_jsonl, "csv": as_csv, "parquet": as_parquet, "arrow": as_arrow}


def read(rows: list[dict[str, Any]], suffix: str, columns: Columns) -> list[Record]:
    url = memory_url()
    write_file(f"{url}/a.{suffix}", WRITERS[suffix](rows))
    plan = plan_input(url, 100, columns)
    plan.check_records()
    return [r for s in plan.splits(0) for r in read_split(url, s, columns, plan.duplicates_of(0))]


def prompt(rows: list[dict[str, Any]], suffix: str, columns: Columns) -> Prompt:
    """The prompt of the first row, as the route stage gets it."""
    first = read(rows, suffix, columns)[0]
    assert first.dead is None
    [found] = prompts_of(staged_table([first], pa.schema([])))
    return found


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"id": "a", "messages": TALK}, PLAIN),
        ({"id": "a", "prompt": None, "messages": TALK}, PLAIN),
        ({"id": "a", "prompt": "", "messages": TALK}, PLAIN),
        ({"id": "a", "messages": IN_PARTS}, PLAIN),
        ({"id": "a", "dialog": TALK}, Columns(messages="dialog")),
        ({"id": "a", "conversations": TURNS, "system": "Be brief."}, SHAREGPT),
        ({"id": "a", "conversations": TALK}, SHAREGPT),
        ({"conversations": [{"from": "system", "value": "Be brief."}, *TURNS], "system": "Be brief."}, SHAREGPT),
        ({"instruction": "Name a", "input": "colour.", "output": "red"}, ALPACA),
        ({"instruction": "Name a colour.", "input": "", "output": "red"}, ALPACA),
        ({"instruction": "Name a colour.", "system": "Be brief.", "history": [["Hi", "Hello"]], "input": None}, ALPACA),
    ],
)
def test_a_row_has_the_same_prompt_in_every_format(row: dict[str, Any], columns: Columns, suffix: str) -> None:
    is_talk = "instruction" not in row or "system" in row
    text = "Name a\ncolour." if row.get("input") else "Name a colour."
    assert prompt([row], suffix, columns) == (Conversation(TALK) if is_talk else text)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_prompt_may_be_messages(suffix: str) -> None:
    rows = [{"id": "a", "prompt": TALK, "chosen": [{"role": "assistant", "content": "Red"}]}]
    assert prompt(rows, suffix, PLAIN) == Conversation(TALK)
    chosen = read(rows, suffix, PLAIN)[0].passed["chosen"]
    assert chosen == (json.dumps(rows[0]["chosen"]) if suffix == "csv" else rows[0]["chosen"])


@pytest.mark.parametrize("text", ["[1, 2]", "[]", "[not JSON", '[{"content": "x"}]', '{"role": "user"}'])
def test_other_prompts_in_csv_are_texts(text: str) -> None:
    assert prompt([{"id": "a", "prompt": text}], "csv", PLAIN) == text


def test_a_text_is_a_text_where_a_list_could_be_given() -> None:
    assert prompt([{"id": "a", "prompt": json.dumps(TALK)}], "jsonl", PLAIN) == json.dumps(TALK)


@pytest.mark.parametrize("suffix", WRITERS)
def test_requests_of_the_batch_api_have_it_too(suffix: str) -> None:
    assert prompt([REQUEST], suffix, OPENAI) == Conversation(TALK)


@pytest.mark.parametrize("suffix", WRITERS)
def test_keys_that_parquet_adds_ask_for_nothing(suffix: str) -> None:
    """In a schema `const: null` would allow null alone, and in a body `logit_bias: {"5": null}` would be refused."""
    schemas = [{"properties": {"a": {"const": "x"}}}, {"properties": {"a": {"type": "string"}, "b": {}}}]
    schemas[1]["properties"]["b"] = {"minimum": 1}
    forms = [{"type": "json_schema", "json_schema": {"schema": schema}} for schema in schemas]
    bodies = [BODY | {"response_format": forms[0], "logit_bias": {"5": 1}}, BODY | {"response_format": forms[1]}]
    requests = [REQUEST | {"custom_id": str(number), "body": body} for number, body in enumerate(bodies)]
    requests.append(REQUEST | {"custom_id": "2", "body": BODY | {"logit_bias": {}}})
    records = read(requests, suffix, OPENAI)
    assert [r.sampling for r in records[1:]] == [{"max_tokens": 3, "json_schema": schemas[1]}, {"max_tokens": 3}]
    rows = [{"prompt": "x", "own": {"json_schema": schema}} for schema in schemas]
    found = read(rows, suffix, Columns(sampling="own"))
    assert [r.sampling for r in found] == [{"json_schema": schema} for schema in schemas]


def test_keys_that_parquet_adds_change_no_prompt(tiny_model: Path) -> None:
    """A struct has all keys in every row, null where there is no value; a template could tell."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
    rows = [
        {"id": "a", "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]},
        {"id": "b", "messages": [{"role": "user", "content": "x", "name": "Ann"}], "tools": [{"type": "function"}]},
        {"id": "c", "messages": [USER], "tools": [{"type": "function", "function": {"name": "g"}}]},
    ]
    rows[2]["messages"].append(
        {"role": "assistant", "tool_calls": [{"function": {"name": "g", "arguments": {"b": 2}}}]}
    )
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = "{{ tools | tojson }}{% for m in messages %}{{ m | tojson }}{% endfor %}"
    form = PromptFormat(tokenizer, PromptSettings(last_assistant="drop"))
    texts = {
        suffix: [form.render(p).text for p in prompts_of(staged_table(read(rows, suffix, PLAIN), pa.schema([])))]
        for suffix in WRITERS
    }
    assert texts["parquet"][1] == '[{"type": "function"}]{"role": "user", "content": "x", "name": "Ann"}'
    assert texts["jsonl"] == texts["csv"]
    assert texts["jsonl"] == texts["parquet"] == texts["arrow"]


def test_arguments_of_the_template_come_with_the_record() -> None:
    rows = [{"id": "a", "messages": TALK, "chat_template_kwargs": {"enable_thinking": False}, "tools": [{"name": "f"}]}]
    for suffix in WRITERS:
        assert prompt(rows, suffix, PLAIN) == Conversation(TALK, {"enable_thinking": False, "tools": [{"name": "f"}]})
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    asked = {
        **REQUEST,
        "body": BODY | kwargs | {"reasoning_effort": "low", "tools": [{"name": "f"}], "tool_choice": "none"},
    }
    assert prompt([asked], "jsonl", OPENAI) == Conversation(
        TALK, {"enable_thinking": False, "reasoning_effort": "low", "tools": [{"name": "f"}]}
    )
    assert prompt([rows[0] | {"messages": TALK}], "jsonl", Columns(tools=None, template=None)) == Conversation(TALK)


@pytest.mark.parametrize("suffix", WRITERS)
def test_a_text_that_goes_through_the_template_has_its_arguments(suffix: str) -> None:
    """As a conversation of one message has them: in Alpaca a row with `system` is one, and a row without is a text."""
    rows = [{"instruction": "x", "tools": [{"name": "f"}], "chat_template_kwargs": {"enable_thinking": False}}]
    arguments = {"enable_thinking": False, "tools": [{"name": "f"}]}
    message = {"role": "user", "content": "x"}
    chat = replace(ALPACA, is_chat=True)
    assert prompt(rows, suffix, chat) == Conversation([message], arguments)
    assert prompt([rows[0] | {"tools": [], "chat_template_kwargs": None}], suffix, chat) == "x"
    assert prompt(rows, suffix, ALPACA) == "x"


@pytest.mark.parametrize("suffix", ["csv"])
@pytest.mark.parametrize("text", ["[{'role': 'user', 'content': 'x'}]", "[{'content': \"x's\", 'role': 'user'}\n {}]"])
def test_messages_as_pandas_writes_them_are_refused(text: str, suffix: str) -> None:
    dead = read([{"prompt": text}, {"prompt": "[{'key': 'x'}]"}], suffix, PLAIN)[0].dead
    assert dead is not None
    assert dead.message == "column 'prompt': messages as Python prints them; write them as JSON (json.dumps)"


@pytest.mark.parametrize(
    ("row", "columns", "error_type", "said"),
    [
        ({"messages": "hi"}, PLAIN, "BadMessages", "column 'messages': text, not a list of messages"),
        ({"messages": [{"role": "user"}]}, PLAIN, "BadMessages", "column 'messages': message 0, key 'content'"),
        ({"prompt": [{"role": "user"}]}, PLAIN, "BadPrompt", "column 'prompt': message 0, key 'content'"),
        ({"messages": [USER], "tools": ["f"]}, PLAIN, "BadMessages", "column 'tools': a list, not a list of objects"),
        ({"messages": [USER], "chat_template_kwargs": [1]}, PLAIN, "BadMessages", "column 'chat_template_kwargs': a"),
        ({"conversations": TURNS}, PLAIN, "MissingPrompt", "neither 'prompt' nor 'messages' has a value; it has"),
        ({"conversations": [{"from": "who", "value": "x"}]}, SHAREGPT, "BadRequest", "column 'conversations': turn 0"),
        (
            {"messages": TURNS},
            PLAIN,
            "BadMessages",
            "'messages' has turns with 'from': set input=sharegpt input.messages",
        ),
        (
            {"messages": "[{'role': 'user'}]"},
            PLAIN,
            "BadMessages",
            "column 'messages': text, not a list of messages, nor",
        ),
        (
            {"conversations": [{"from": "system", "value": "a"}], "system": "b"},
            SHAREGPT,
            "BadRequest",
            "column 'system' and turn 0 of 'conversations' give different system texts",
        ),
        ({"conversations": [{"from": "human"}]}, SHAREGPT, "BadRequest", "column 'conversations': turn 0, key 'value'"),
        ({"instruction": 3}, ALPACA, "BadRequest", "columns 'instruction' and 'input': not text"),
        ({"instruction": "", "input": ""}, ALPACA, "BadPrompt", "column 'instruction' is empty"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row: dict[str, Any], columns: Columns, error_type: str, said: str) -> None:
    rows = [row, {"prompt": "x", "instruction": "x", "conversations": TURNS}]
    dead = read(rows, "jsonl", columns)[0].dead
    assert dead is not None
    assert (dead.error_type, dead.message[: len(said)]) == (error_type, said)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "a", "conversations": TURNS}, "it has 'conversations': set input=sharegpt"),
        (
            {"id": "a", "conversation": TURNS},
            "it has 'conversation': set input=sharegpt input.messages_column=conversation",
        ),
        ({"messages": TURNS}, "'messages' has turns with 'from': set input=sharegpt input.messages_column=messages"),
        ({"instruction": "x", "output": "y"}, "it has 'instruction': set input=alpaca"),
        (REQUEST, "it has 'custom_id': set input=openai_batch"),
        ({"question": "x", "n": 1}, "it has question, n: set input.prompt_column or input.messages_column"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_input_without_any_prompt_gets_one_hint(row: dict[str, Any], said: str, suffix: str) -> None:
    with pytest.raises(UserError, match="has a prompt; ") as error:
        read([row, row | {"id": "b"}], suffix, PLAIN)
    assert str(error.value).endswith(said)
