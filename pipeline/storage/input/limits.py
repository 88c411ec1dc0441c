"""How much of an input is held at a time, and what a record may have: an input may come from anyone."""

import io
from typing import Any

import fsspec

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked

from .files import named

MAX_LINE = 16 * 2**20  # bytes of a record, or characters of a CSV record; longer ones are dead letters
MAX_DEPTH = 50  # levels of nesting; Arrow and orjson fail on more (64 and 254)
MAX_COLUMNS = 1000  # of a record, and of all records together
MAX_PORTION = 64 * 2**20  # about the characters of the records that are held at a time
# A gzip file that unpacks to more than this, and to so many times its size, holds no records: text shrinks to a third
# or a tenth, the same line over and over to a hundredth.
_BOMB_BYTES, _BOMB_RATIO = 2**30, 300


def text_size(value: Any) -> int:
    """About how many characters a value has."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(len(k) + text_size(v) for k, v in value.items())
    return sum(map(text_size, value)) + 8 if isinstance(value, (list, tuple)) else 8


def is_deeper(value: Any, levels: int) -> bool:
    """Whether objects and lists are nested in more than so many levels."""
    if not isinstance(value, (dict, list)):
        return False
    return levels == 0 or any(is_deeper(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))


def open_text(fs: fsspec.AbstractFileSystem, path: str) -> io.BufferedReader:
    """Open a file to read lines from, unpacked where its name ends with ``.gz``, 1 MiB at a time."""
    if not named(path).endswith(".gz"):
        return io.BufferedReader(fs.open(path, "rb"), 2**20)
    unpacked = _Unpacked(fs.open(path, "rb", compression="gzip"), path, fs.size(path) or 0)
    return io.BufferedReader(unpacked, 2**20)


class _Unpacked(io.RawIOBase):
    """What a gzip file unpacks to; `UserError` for one that unpacks to without end."""

    def __init__(self, opened: Any, path: str, size: int) -> None:
        self._opened, self._path = opened, path
        self._left = max(_BOMB_BYTES, _BOMB_RATIO * size)

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes."""
        content = self._opened.read(len(buffer))
        buffer[: len(content)] = content
        self._left -= len(content)
        if self._left < 0:
            raise UserError(
                f"input: {masked(self._path)} unpacks to more than {_BOMB_RATIO} times its size; if that is right,"
                " unpack it first"
            )
        return len(content)

    def close(self) -> None:
        """Close the file too."""
        self._opened.close()
        super().close()
