"""What a format gives: rows from any row on, and points from which reading can start."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import fsspec
import pyarrow as pa

from pipeline.records import DeadLetter

Layout = Literal["columns", "openai_batch"]


@dataclass(frozen=True)
class InputRow:
    """One parsed row: its values, or why there are none or none of use, and the text as far as it can be shown."""

    values: dict[str, Any] | None
    dead: DeadLetter | None = None
    raw: str | None = None


@dataclass(frozen=True)
class SeekPoint:
    """Reading can start at ``row`` of the file by going to ``offset`` (bytes, or a row group; 0 for the start)."""

    row: int
    offset: int


class Format(Protocol):
    """A file format. Bad rows are returned as such; only a file that cannot be read at all raises `UserError`."""

    def scan(self, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[int, InputRow]]:
        """Every row of the file, each with the offset from which it can be read again (see `SeekPoint`)."""

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint) -> Iterator[InputRow]:
        """The rows from ``start`` to the end of the file."""

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """Column types where the file states them; None where they are found by looking at the values."""


def unreadable(error_type: str, message: str, raw: bytes | str) -> InputRow:
    """A row that could not be parsed; at most 2,000 characters of it are kept."""
    text = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw
    return InputRow(None, DeadLetter("read", error_type, message), text[:2000])
