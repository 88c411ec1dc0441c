"""Check messages from any input and bring them into the one form that chat templates get.

Keys without a value are left out at every depth, so that JSON and Parquet, whose structs have all keys in every row,
give the same prompt. Parts of text are joined. `ValueError` names the message by its index from 0, and the key.
"""

import re
from typing import Any

from pipeline.exact_json import loads
from pipeline.records import Message

_TEXT_PARTS = ("text", "input_text", "output_text")  # types in the APIs for chat and for responses
_PRINTED = re.compile(r"\s*\[\{'(role|content)': ['\"]")
REASONING = ("reasoning_content", "reasoning", "thinking")
"""The keys in which templates look for reasoning."""
# A message with one of these needs no content.
_INSTEAD_OF_CONTENT = ("tool_calls", "function_call", *REASONING)


def read_messages(value: Any) -> list[Message]:
    """Return the messages of a conversation, each with a role and, unless it is a tool call, a text as content."""
    if not isinstance(value, list) or not value:
        of_text = ", nor the JSON of one" if isinstance(value, str) else ""
        problem = "the list of messages is empty" if value == [] else f"{_kind(value)}, not a list of messages{of_text}"
        raise ValueError(problem)
    return [_message(message, f"message {index}") for index, message in enumerate(value)]


def read_tools(value: Any) -> list[dict[str, Any]]:
    """Return the tools that a conversation may use, as JSON schemas."""
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError(f"{_kind(value)}, not a list of objects that describe tools (or set input.tools_column=null)")
    tools: list[dict[str, Any]] = without_nulls(value)
    return tools


def read_arguments(value: Any) -> dict[str, Any]:
    """Return the arguments of the chat template that a record gives."""
    if not isinstance(value, dict):
        raise ValueError(f"{_kind(value)}, not an object or the JSON of one")
    arguments: dict[str, Any] = without_nulls(value)
    return arguments


def without_nulls(value: Any) -> Any:
    """Return a value without the keys of objects whose value is null."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def json_value(value: Any) -> Any:
    """Return a value; if it is text, as in CSV, the JSON in it, or the text itself. Empty text is None."""
    if not isinstance(value, str):
        return value
    try:
        return loads(value) if value.strip() else None
    except ValueError:
        return value


def messages_in_text(value: Any) -> list[Any] | None:
    """Return the messages if a text is the JSON of some; None for all other values.

    Raises `ValueError` for messages as Python or NumPy print them, which pandas writes into CSV.
    """
    if isinstance(value, str) and _PRINTED.match(value):
        raise ValueError("messages as Python prints them; write them as JSON (json.dumps)")
    found = json_value(value) if isinstance(value, str) and value.lstrip().startswith("[") else None
    if not isinstance(found, list) or not found:
        return None
    return found if all(isinstance(message, dict) and "role" in message for message in found) else None


def _message(value: Any, where: str) -> Message:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {_kind(value)}, not an object with role and content")
    message: Message = without_nulls(value)
    role = message.get("role")
    if not isinstance(role, str) or not role.strip():
        raise ValueError(f"{where}, key 'role': {_kind(role)}, not the name of a role")
    if "content" in message:
        message["content"] = _text(message["content"], where)
    elif not any(key in message for key in _INSTEAD_OF_CONTENT):
        raise ValueError(f"{where}, key 'content': there is none, and no tool call")
    if "tool_calls" in message:
        message["tool_calls"] = _tool_calls(message["tool_calls"], where)
        if not message["tool_calls"]:
            del message["tool_calls"]
    return message


def _text(content: Any, where: str) -> str:
    """Return the content of a message; its parts are joined as they are."""
    if isinstance(content, list):
        return "".join(_part(part, f"{where}, key 'content[{index}]'") for index, part in enumerate(content))
    if not isinstance(content, str):
        raise ValueError(f"{where}, key 'content': {_kind(content)}, not text")
    return content


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise ValueError(f"{where}: {_kind(part)}, not a part of text")
    kind, text = part.get("type", "text"), part.get("text")
    if kind not in _TEXT_PARTS:
        raise ValueError(f"{where}: a part of type {str(kind)[:60]!r}; only parts of text can be answered")
    if not isinstance(text, str):
        raise ValueError(f"{where}: a part of text whose text is {_kind(text)}")
    return text


def _tool_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Return the calls of a message, which some data sets hold as JSON text."""
    calls = without_nulls(json_value(value))
    if not isinstance(calls, list):
        raise ValueError(f"{where}, key 'tool_calls': {_kind(calls)}, not a list of calls")
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"{where}, key 'tool_calls[{index}]': no call of a function with a name")
    return calls


def _kind(value: Any) -> str:
    """Return what a value is, in JSON's words."""
    if value is None:
        return "null"
    for kind, name in ((bool, "true or false"), ((int, float), "a number"), (dict, "an object"), (list, "a list")):
        if isinstance(value, kind):
            return name
    if isinstance(value, str):
        return "text" if value.strip() else "empty text"
    return f"a {type(value).__name__}"
