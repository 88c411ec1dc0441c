"""Plan a job in one pass over the input: number of rows, seek points, column types, repeated ids."""

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, masked_error

from .columns import Columns
from .duplicates import DuplicateFinder
from .files import InputFile, list_input
from .formats import SeekPoint, format_of
from .limits import MAX_PORTION, text_size
from .schema import SchemaFinder

SPLIT_ROWS = 2048  # rows between two seek points
_row_of = itemgetter(1)  # of a seek point


@dataclass(frozen=True)
class Split:
    """Rows of one file that one task reads: ``take`` rows after skipping ``skip`` rows from ``start`` on.

    ``row`` is the index of the first of them in its window.
    """

    path: str
    start: SeekPoint
    skip: int
    take: int
    row: int


@dataclass(frozen=True)
class InputPlan:
    """The input as it was found. A window is the next `window_rows` rows in file order, the same on any cluster."""

    url: str
    files: list[InputFile]
    rows: int
    window_rows: int
    seek_points: list[tuple[str, int, int, int]]  # path, row of the input, row of the file, offset
    passed: pa.Schema
    duplicates: pa.Table = field(repr=False)

    @property
    def windows(self) -> int:
        """The number of windows."""
        return -(-self.rows // self.window_rows)

    def window_size(self, window: int) -> int:
        """The number of rows of a window."""
        return min(self.window_rows, self.rows - window * self.window_rows)

    def splits(self, window: int) -> Iterator[Split]:
        """The splits of one window, in order."""
        first, last = window * self.window_rows, window * self.window_rows + self.window_size(window)
        # Bisected: a billion rows have half a million points.
        index = max(0, bisect_right(self.seek_points, first, key=_row_of) - 1)
        while index < len(self.seek_points) and _row_of(self.seek_points[index]) < last:
            path, row, file_row, offset = self.seek_points[index]
            index += 1
            end = _row_of(self.seek_points[index]) if index < len(self.seek_points) else self.rows
            start, stop = max(row, first), min(end, last)
            if start < stop:
                yield Split(path, SeekPoint(file_row, offset), start - row, stop - start, start - first)

    def duplicates_of(self, window: int) -> dict[int, tuple[int, int]]:
        """Repeated ids of a window: row of the window -> (first row of the input with that id, rank)."""
        first = window * self.window_rows
        rows = self.duplicates["row"].to_numpy()
        low, high = rows.searchsorted([first, first + self.window_size(window)])
        part = self.duplicates.slice(low, high - low).to_pylist()
        return {d["row"] - first: (d["first"], d["rank"]) for d in part}


def plan_input(
    url: str,
    window_rows: int,
    columns: Columns,
    output: str | None = None,
    limit: int | None = None,
) -> InputPlan:
    """Read the whole input once. ``output``: see `list_input`; ``limit``: read only this many rows.

    Raises `UserError` if the input has no record or a file cannot be read.
    """
    fs, files = list_input(url, output)
    finder, schema, rows = DuplicateFinder(), SchemaFinder(), 0
    points: list[tuple[str, int, int, int]] = []
    for file in files:
        if limit is None or rows < limit:
            max_rows = None if limit is None else limit - rows
            rows += _scan_file(fs, file.path, rows, columns, finder, schema, points, max_rows)
    if rows == 0:
        raise UserError(f"input: no record in {masked(url)} ({len(files)} file(s))")
    return InputPlan(masked(url), files, rows, window_rows, points, schema.schema(), finder.find())


def _scan_file(
    fs: fsspec.AbstractFileSystem,
    path: str,
    first: int,
    columns: Columns,
    finder: DuplicateFinder,
    schema: SchemaFinder,
    points: list[tuple[str, int, int, int]],
    max_rows: int | None,
) -> int:
    """Add the rows of a file to the plan; returns their number. ``first``: the file's first row in the input."""
    file_format = format_of(path, columns.layout)
    file_schema = file_format.schema(fs, path)
    if file_schema is not None:
        passed = columns.passed(dict.fromkeys(file_schema.names))
        schema.add_schema(pa.schema([f for f in file_schema if f.name in passed]))
    chunk: list[dict[str, Any]] = []
    size = 0
    count, last_offset = 0, -1
    for count, (offset, row) in enumerate(_read(file_format.read(fs, path), path, max_rows), start=1):
        index = count - 1
        if index == 0 or (offset != last_offset and index - (points[-1][2]) >= SPLIT_ROWS):
            # A format that cannot be entered in the middle keeps offset 0, so a file of any length is one split.
            points.append((path, first + index, index, offset))
        last_offset = offset
        finder.add(columns.identity(row), first + index)
        if row.values is not None and file_schema is None:
            chunk.append(columns.passed(row.values))
            size += text_size(chunk[-1])
            if len(chunk) >= SPLIT_ROWS or size > MAX_PORTION:
                schema.add(chunk)
                chunk, size = [], 0
    schema.add(chunk)
    return count


def _read(rows: Iterator[Any], path: str, max_rows: int | None) -> Iterator[Any]:
    try:
        yield from islice(rows, max_rows)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error, pa.ArrowException) as error:
        raise UserError(f"input: cannot read {masked(path)}: {masked_error(error)}") from None
