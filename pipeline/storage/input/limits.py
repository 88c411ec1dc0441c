"""Limits of a record and of memory: an input may come from an untrusted source."""

from typing import Any

MAX_LINE = 16 * 2**20  # bytes of a record, or characters of a CSV record; longer ones are dead letters
MAX_DEPTH = 50  # levels of nesting; Arrow fails on more than 64, orjson on more than 254
MAX_COLUMNS = 1000  # of a record, and of all records together
MAX_BATCH_CHARS = 64 * 2**20  # characters, about, of the records that are in memory at a time


def text_size(value: Any) -> int:
    """The approximate number of characters of a value."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(len(k) + text_size(v) for k, v in value.items())
    return sum(map(text_size, value)) + 8 if isinstance(value, (list, tuple)) else 8


def is_deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists are nested deeper than ``levels``."""
    if not isinstance(value, (dict, list)):
        return False
    return levels == 0 or any(is_deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))
