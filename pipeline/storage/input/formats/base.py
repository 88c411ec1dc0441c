"""The interface of an input format, and the rows that it yields."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import fsspec
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.records import Cells, DeadLetter
from pipeline.storage.input.limits import MAX_COLUMNS


@dataclass(frozen=True)
class InputRow:
    """One row: its values, a dead letter if they cannot be used, and the start of an unreadable row's text.

    ``is_text``: the format has texts alone, so that a list can only be given as JSON text. ``cells``: the same values
    as Arrow has them, if the format states types. A row that is made of another one keeps both (`dataclasses.replace`).
    """

    values: dict[str, Any] | None
    dead: DeadLetter | None = None
    raw: str | None = None
    cells: Cells | None = field(default=None, compare=False)
    is_text: bool = False


LocatedRows = Iterator[tuple[int, InputRow]]
"""Rows, each with the offset from which it can be read again."""


@dataclass(frozen=True)
class SeekPoint:
    """A point from which a file can be read: ``row`` of the file is at ``offset``, in bytes or row groups."""

    row: int
    offset: int


FILE_START = SeekPoint(0, 0)


class Format(ABC):
    """A file format. A bad row is yielded with a dead letter; a file that cannot be read at all raises `UserError`.

    ``suffixes``: the ends of the names of its files, in lower case; ``is_text``: its files hold text, and may be
    compressed.
    """

    suffixes: ClassVar[tuple[str, ...]]
    is_text: ClassVar[bool] = False

    @abstractmethod
    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START) -> LocatedRows:
        """Yield the rows from ``start`` to the end of the file; they may share an offset.

        A file that cannot be entered in the middle has the offset 0 for all rows.
        """

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """The column types if the file states them; None if they must be inferred from the values."""
        return None


def check_names(names: Sequence[str], path: str) -> None:
    """Raise `UserError` for too many columns, or one that is named twice. ``path``: of the file, masked."""
    if len(names) > MAX_COLUMNS:
        raise UserError(f"input: {path} has {len(names)} columns; the limit is {MAX_COLUMNS}")
    repeated = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if repeated is not None:
        raise UserError(f"input: {path} has two columns of the name {repeated[:100]!r}; rename one of them")


def unreadable(error_type: str, message: str, raw: bytes | str) -> InputRow:
    """A row that could not be parsed, with the first 2,000 characters of its text."""
    text = raw.decode("utf-8", "backslashreplace") if isinstance(raw, bytes) else raw
    return InputRow(None, DeadLetter("read", error_type, message), text[:2000])
