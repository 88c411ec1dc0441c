"""The layout of ShareGPT: conversations whose turns are {"from": "human", "value": "..."}."""

from typing import Any

from pipeline.exact_json import loads

from .messages import json_value

CONSUMED = ("system",)
_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("observation", "tool", "function_response"), "tool"),
    "system": "system",
}


def arrange(values: dict[str, Any], messages_column: str) -> tuple[dict[str, Any], str]:
    """Turn the turns in ``messages_column`` into messages, after the text of the column `system` if there is one.

    Returns the values of the row, and why they cannot be used, else empty.
    """
    turns = json_value(values.get(messages_column))
    if not isinstance(turns, list):
        return values, ""
    others = {name: value for name, value in values.items() if name not in CONSUMED}
    try:
        messages = [_message(turn, index) for index, turn in enumerate(turns)]
    except ValueError as error:
        return others, f"column {messages_column!r}: {error}"
    system = {"role": "system", "content": values.get("system")}
    if system["content"] and messages[:1] != [system]:
        if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
            return others, f"column 'system' and turn 0 of {messages_column!r} give different system texts"
        messages.insert(0, system)
    return others | {messages_column: messages}, ""


def are_turns(value: Any) -> bool:
    """Whether a value is a list of turns, and not of messages."""
    found = json_value(value)
    first = found[0] if isinstance(found, list) and found else None
    return isinstance(first, dict) and first.get("from") is not None and first.get("role") is None


def _message(turn: Any, index: int) -> Any:
    """Turn one turn into a message; one that is a message already stays as it is."""
    if not isinstance(turn, dict) or turn.get("from") is None:
        return turn
    speaker, text = turn["from"], turn.get("value")
    if speaker == "function_call":
        return {"role": "assistant", "tool_calls": _calls(text, index)}
    if not isinstance(speaker, str) or speaker not in _ROLES:
        raise ValueError(f"turn {index}, key 'from': {str(speaker)[:60]!r} is none of {', '.join(_ROLES)}")
    if not isinstance(text, str):
        raise ValueError(f"turn {index}, key 'value': no text")
    return {"role": _ROLES[speaker], "content": text}


def _calls(text: Any, index: int) -> list[dict[str, Any]]:
    try:
        found = loads(text)
    except (ValueError, TypeError):
        raise ValueError(f"turn {index}, key 'value': not the JSON of a function call") from None
    calls = found if isinstance(found, list) else [found]
    return [{"type": "function", "function": call} for call in calls]
