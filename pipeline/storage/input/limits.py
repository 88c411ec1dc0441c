"""Limits of a record and of memory: an input may come from an untrusted source."""

import io
from typing import Any

import fsspec

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked

from .files import name_without_query

MAX_LINE = 16 * 2**20  # bytes of a record, or characters of a CSV record; longer ones are dead letters
MAX_DEPTH = 50  # levels of nesting; Arrow fails on more than 64, orjson on more than 254
MAX_COLUMNS = 1000  # of a record, and of all records together
MAX_BATCH_CHARS = 64 * 2**20  # characters, about, of the records that are in memory at a time
# A gzip file that unpacks to more than both limits is refused: text compresses to a third or a tenth of its size, the
# same line repeated to a hundredth.
_BOMB_BYTES, _BOMB_RATIO = 2**30, 300


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


def open_text(fs: fsspec.AbstractFileSystem, path: str) -> io.BufferedReader:
    """Open a file to read lines, decompressed if its name ends with ``.gz``, with a buffer of 1 MiB."""
    if not name_without_query(path).endswith(".gz"):
        return io.BufferedReader(fs.open(path, "rb"), 2**20)
    unpacked = _BoundedGzip(fs.open(path, "rb", compression="gzip"), path, fs.size(path) or 0)
    return io.BufferedReader(unpacked, 2**20)


class _BoundedGzip(io.RawIOBase):
    """The content of a gzip file; raises `UserError` beyond the limits of its unpacked size."""

    def __init__(self, opened: Any, path: str, size: int) -> None:
        self._opened, self._path = opened, path
        self._left = max(_BOMB_BYTES, _BOMB_RATIO * size)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to the buffer's size."""
        content = self._opened.read(len(buffer))
        buffer[: len(content)] = content
        self._left -= len(content)
        if self._left < 0:
            raise UserError(
                f"input: {masked(self._path)} unpacks to more than {_BOMB_RATIO} times its size; if that is"
                " intended, unpack it first"
            )
        return len(content)

    def close(self) -> None:
        """Close the underlying file too."""
        self._opened.close()
        super().close()
