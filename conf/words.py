"""Take ``key=value`` words as they are meant: Hydra's grammar leaves out many texts, and reads lists unlike JSON."""

import json
import re
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pipeline.errors import UserError

_TEXT_LISTS = ("generation.stop", "generation.choices", "bank.adapters")
_NAMES = {True: "true", False: "false", None: "null"}


def as_meant(word: str) -> str:
    """Rewrite a word so that Hydra takes it; `UserError` with how to write it if its meaning is unclear.

    A JSON list is read as JSON, and a JSON object stays a text (`json_object` reads it); in lists of texts, numbers are
    taken as they are written. A value that Hydra cannot read, or would take for several, is a text.
    """
    key, equals, value = word.partition("=")
    if not equals:
        return word
    is_list = value.startswith("[") and value.endswith("]")
    values = _json_list(value, of_texts=key in _TEXT_LISTS) if is_list else None
    if values is not None:
        return f"{key}=[{','.join(map(_quoted, values))}]"
    if isinstance(json_object(value), dict):
        return f"{key}={_quoted(value)}"
    if "\\" in value and (is_list or key in _TEXT_LISTS):
        raise UserError(f"config: {key}: write a text with a backslash as JSON, in single quotes: '{key}=[\"\\n\"]'")
    is_quoted = re.search(r"['\"\[\]{}$]", value[1:-1] if is_list else value) is not None
    is_texts = key in _TEXT_LISTS and value not in ("", "null") and not is_quoted
    kind = _kind(word)
    if (kind == "value" and not is_texts) or value.startswith(("'", '"', "{")):
        return word
    if (is_list and is_quoted) or (is_texts and "," in value and not is_list):
        raise UserError(f'config: {key}: write the list as JSON, in single quotes: \'{key}=["a", "b"]\'')
    if is_list and value[1:-1].strip():
        return f"{key}=[{','.join(_quoted(part.strip()) for part in value[1:-1].split(','))}]"
    return word if value.startswith("[") and key in _TEXT_LISTS else f"{key}={_quoted(value)}"


def json_object(value: Any) -> Any:
    """The object in a text of JSON; other values unchanged."""
    try:
        read = json.loads(value) if isinstance(value, str) and value.lstrip().startswith("{") else None
    except ValueError:
        return value
    return read if isinstance(read, dict) else value


def _json_list(value: str, of_texts: bool) -> list[Any] | None:
    """The scalars of a JSON list; None if it is none. ``of_texts``: numbers, true and null as they are written."""
    number = str if of_texts else None
    try:
        values: list[Any] = json.loads(value, parse_int=number, parse_float=number, parse_constant=number)
    except ValueError:
        return None
    if any(isinstance(part, (list, dict)) for part in values):
        return None
    return [_NAMES[v] if of_texts and not isinstance(v, str) else v for v in values]


def _quoted(value: Any) -> str:
    """A scalar in Hydra's grammar."""
    if not isinstance(value, str):
        return json.dumps(value)
    # Before a quote, and at the end, backslashes escape; elsewhere they stand for themselves.
    text = re.sub(r"(\\*)(\"|$)", lambda match: match[1] * 2 + match[2].replace('"', '\\"'), value)
    return f'"{text}"'.replace("${", "\\${")


def _kind(word: str) -> str:
    """``value``, ``several`` (which commas would make it), or ``text`` if Hydra cannot read it."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return "text"
    return "several" if override.is_sweep_override() else "value"
