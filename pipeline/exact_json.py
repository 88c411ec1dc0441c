"""JSON whose whole numbers may have any size, as Python's have; orjson ends at 64 bits."""

import base64
import json
import re
from typing import Any

import orjson

_HUGE = 2.0**63
_END_OF_KEY = re.compile(r'"\s*:')


def loads(text: str | bytes) -> Any:
    """Return the value of JSON text, with whole numbers of any size; raises `ValueError`.

    orjson rounds whole numbers beyond 64 bits to doubles, so text with such a double is parsed again.
    """
    value = orjson.loads(text)
    try:
        return json.loads(text) if _has_huge_double(value) else value
    except RecursionError:
        raise ValueError("the values are nested too deeply") from None


def repeated_key(text: str, value: Any) -> str | None:
    """Return a key that an object in JSON text has twice; None if there is none. ``value``: of the text, by `loads`.

    Parsers keep the last of its values. Written again, such a text has fewer keys: only where the numbers of what looks
    like a key differ is it parsed slowly.
    """
    is_plain = "\\u0022" not in text  # an escaped quote that is written again as another
    if is_plain and len(_END_OF_KEY.findall(text)) == dumps(value).count('":'):
        return None
    try:
        json.loads(text, object_pairs_hook=_check_keys)
    except _RepeatedKeyError as error:
        return str(error)
    return None


class _RepeatedKeyError(Exception):
    pass


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise _RepeatedKeyError(key)
        seen.add(key)


def _has_huge_double(value: Any) -> bool:
    kind = type(value)
    if kind is float:
        return not -_HUGE < value < _HUGE
    if kind is dict:
        return any(map(_has_huge_double, value.values()))
    return kind is list and any(map(_has_huge_double, value))


def dumps(value: Any, sort_keys: bool = False) -> str:
    """Return the JSON text of a value. What JSON has no form for is text: bytes in base64, decimals with all digits."""
    option = orjson.OPT_NON_STR_KEYS | (orjson.OPT_SORT_KEYS if sort_keys else 0)
    try:
        return orjson.dumps(value, default=_as_text, option=option).decode()
    except TypeError:  # a whole number beyond 64 bits
        return orjson.dumps(_written(value), default=_as_text, option=option).decode()


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _written(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_written(inner) for inner in value]
    is_wide = isinstance(value, int) and not -(2**63) <= value < 2**64
    return orjson.Fragment(json.dumps(value)) if is_wide else value


def _as_text(value: Any) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
