"""Messages of any input get one form, and what is wrong with one is named."""

from typing import Any

import pytest

from pipeline.conversations import read_messages

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": null}'}}
CALLING = {"role": "assistant", "tool_calls": [CALL]}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (user("hi"), user("hi")),
        (user(""), user("")),
        (user([{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]), user("a b")),
        (user(["a", {"type": "input_text", "text": "b"}, {"text": "c", "image_url": None}]), user("abc")),
        ({"role": "user", "content": "hi", "name": None, "tool_calls": None}, user("hi")),
        ({"role": "assistant", "content": "hi", "tool_calls": []}, {"role": "assistant", "content": "hi"}),
        (CALLING | {"content": None}, CALLING),
        (CALLING | {"content": "x"}, CALLING | {"content": "x"}),
        (
            {"role": "assistant", "tool_calls": '[{"function": {"name": "f", "arguments": {"a": 1, "b": null}}}]'},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        ),
        (
            {"role": "assistant", "tool_calls": f'[{{"name": "f", "arguments": {{"a": {2**70}}}}}]'},
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"a": 2**70}}]},
        ),
        ({"role": "assistant", "reasoning_content": "why"}, {"role": "assistant", "reasoning_content": "why"}),
    ],
)
def test_a_message_has_one_form(given: dict[str, Any], read: dict[str, Any]) -> None:
    assert read_messages([given]) == [read]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hi", "text, not a list of messages"),
        ({}, "an object, not a list of messages"),
        ([], "the list of messages is empty"),
        ([user("a"), "b"], "message 1: text, not an object with role and content"),
        ([{"content": "a"}], "message 0, key 'role': null, not the name of a role"),
        ([{"role": 1, "content": "a"}], "message 0, key 'role': a number, not the name"),
        ([{"role": " ", "content": "a"}], "message 0, key 'role': empty text, not the name"),
        ([user(None)], "message 0, key 'content': there is none, and no tool call"),
        ([{"role": "assistant", "name": "x"}], "message 0, key 'content': there is none"),
        ([user(5)], "message 0, key 'content': a number, not text"),
        ([user({"text": "a"})], "message 0, key 'content': an object, not text"),
        ([user([{"type": "image_url", "image_url": "x"}])], "message 0, key 'content[0]': a part of type 'image_url'"),
        (
            [user(["a", {"type": "text", "text": None}])],
            "message 0, key 'content[1]': a part of text whose text is null",
        ),
        ([user([3])], "message 0, key 'content[0]': a number, not a part of text"),
        ([{"role": "assistant", "tool_calls": "f()"}], "message 0, key 'tool_calls': text, not a list of calls"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "message 0, key 'tool_calls[0]': no call of a function"),
    ],
)
def test_what_is_wrong_with_a_message_is_named(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        read_messages(given)
    assert str(error.value).startswith(said)
