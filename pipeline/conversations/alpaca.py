"""The layout of Alpaca: an instruction, an optional input, and perhaps a system text and earlier turns."""

from typing import Any

from .messages import json_value

CONSUMED = ("input", "system", "history")


def arrange(values: dict[str, Any], prompt_column: str) -> tuple[dict[str, Any], str]:
    """Join the instruction in ``prompt_column`` and the column `input`, one a line, into a prompt.

    With a text in `system`, or pairs of question and answer in `history`, the prompt is a conversation. Returns the
    values of the row, and why they cannot be used, else empty.
    """
    others = {name: value for name, value in values.items() if name not in CONSUMED}
    instruction, text = values.get(prompt_column), values.get("input")
    history = json_value(values.get("history")) or []
    if instruction is None and not text:
        return others, ""
    asked = [part for part in (instruction, text) if part]
    if not all(isinstance(part, str) for part in asked):
        return others, f"columns {prompt_column!r} and 'input': not text"
    prompt: Any = "\n".join(asked)
    if not isinstance(history, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in history):
        return others, "column 'history': not a list of pairs of question and answer"
    if history or values.get("system"):
        turns = [(role, text) for turn in history for role, text in zip(("user", "assistant"), turn, strict=True)]
        system = [("system", values["system"])] if values.get("system") else []
        prompt = [{"role": role, "content": text} for role, text in [*system, *turns, ("user", prompt)]]
    return others | {prompt_column: prompt}, ""
