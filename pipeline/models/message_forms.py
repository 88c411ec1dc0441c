"""The forms in which chat templates want the same message."""

import json
from collections.abc import Iterator
from typing import Any

from pipeline.records import Message


def as_parts(message: Message) -> Message:
    """Return a message whose content is a list of one part of text."""
    content = message.get("content")
    return message if content is None else message | {"content": [{"type": "text", "text": content}]}


def forms(messages: list[Message]) -> Iterator[list[Message]]:
    """Yield messages in the forms that templates want, the convention of transformers first.

    That is: the arguments of a call as an object, and no content where there is none. Some want JSON text, or "".
    """
    has_calls = is_without_content = False
    for message in messages:
        has_calls |= "tool_calls" in message
        is_without_content |= "content" not in message
    if not has_calls and not is_without_content:
        yield messages
        return
    for as_objects in (True, False) if has_calls else (True,):
        for default in ({}, {"content": ""}) if is_without_content else ({},):
            yield [default | _with_arguments(message, as_objects) for message in messages]


def with_objects(messages: list[Message]) -> list[Message]:
    """Return messages whose calls have their arguments as objects, without the escapes of JSON text."""
    return [_with_arguments(message, as_objects=True) for message in messages]


def _with_arguments(message: Message, as_objects: bool) -> Message:
    if "tool_calls" not in message:
        return message
    return message | {"tool_calls": [_call(call, as_objects) for call in message["tool_calls"]]}


def _call(call: dict[str, Any], as_objects: bool) -> dict[str, Any]:
    if "function" in call:
        return call | {"function": _call(call["function"], as_objects)}
    arguments = call.get("arguments")
    if as_objects and isinstance(arguments, str):
        try:
            found = json.loads(arguments)  # integers of any size, which orjson does not have
        except (ValueError, RecursionError):
            return call
        return call | {"arguments": found} if isinstance(found, dict) else call
    if not as_objects and isinstance(arguments, dict):
        return call | {"arguments": json.dumps(arguments, ensure_ascii=False)}
    return call


def with_names(message: Message, prefix: str, end: str) -> Message:
    """Return a message whose calls have other names, ``prefix``, their number and ``end``."""
    if "tool_calls" not in message:
        return message

    def named(call: dict[str, Any], number: int) -> dict[str, Any]:
        if "function" in call:
            return call | {"function": named(call["function"], number)}
        return call | {"name": f"{prefix}{number}{end}"}

    return message | {"tool_calls": [named(call, number) for number, call in enumerate(message["tool_calls"])]}
