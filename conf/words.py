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

    A JSON list or object is read as JSON; in lists of texts, numbers are taken as they are written. A value that Hydra
    cannot read is a text.
    """
    key, equals, value = word.partition("=")
    if not equals:
        return word
    values = _json_object(value)
    if values is not None:
        return f"{key}={_quoted(values)}"
    is_list = value.startswith("[") and value.endswith("]")
    parts = _json_list(value, of_texts=key in _TEXT_LISTS) if is_list else None
    if parts is not None:
        return f"{key}={_quoted(parts)}"
    if "\\" in value and (is_list or key in _TEXT_LISTS):
        raise UserError(f"config: {key}: write a text with a backslash as JSON, in single quotes: '{key}=[\"\\n\"]'")
    if _is_readable(word) or value.startswith(("'", '"', "{")):
        return word
    if is_list and re.search(r"['\"\[\]{}]", value[1:-1]):
        raise UserError(f'config: {key}: write the list as JSON, in single quotes: \'{key}=["a", "b"]\'')
    if is_list:
        return f"{key}=[{','.join(_quoted(part.strip()) for part in value[1:-1].split(','))}]"
    return word if value.startswith("[") and key in _TEXT_LISTS else f"{key}={_quoted(value)}"


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


def _json_object(value: str) -> dict[str, Any] | None:
    """A JSON object whose keys Hydra's grammar has; None for all other texts."""
    try:
        found = json.loads(value) if value.startswith("{") else None
    except ValueError:
        return None
    return found if isinstance(found, dict) and _has_plain_keys(found) else None


def _has_plain_keys(value: Any) -> bool:
    if isinstance(value, dict):
        return all(re.fullmatch(r"[A-Za-z_]\w*", key) and _has_plain_keys(inner) for key, inner in value.items())
    return not isinstance(value, list) or all(map(_has_plain_keys, value))


def _quoted(value: Any) -> str:
    """A value of JSON in Hydra's grammar."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {_quoted(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(_quoted, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    # Before a quote, and at the end, backslashes escape; elsewhere they stand for themselves.
    text = re.sub(r"(\\*)(\"|$)", lambda match: match[1] * 2 + match[2].replace('"', '\\"'), value)
    return f'"{text}"'.replace("${", "\\${")


def _is_readable(word: str) -> bool:
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:
        return False
    return True
