"""One pass over the input before any work: how many rows, where reading can start, column types, repeated ids."""

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
from pipeline.storage.store.redact import masked, one_line

from .columns import Columns
from .duplicates import DuplicateFinder
from .files import InputFile, list_input
from .formats import SeekPoint, format_of
from .limits import MAX_PORTION, text_size
from .schema import SchemaFinder

SPLIT_ROWS = 2048  # rows between two seek points: the unit of reading
_row_of = itemgetter(1)  # of a seek point


@dataclass(frozen=True)
class Split:
    """Some rows of one file, read by one task: ``take`` rows after the first ``skip`` rows behind ``start``.

    ``row`` is the place of the first of them in its window.
    """

    path: str
    start: SeekPoint
    skip: int
    take: int
    row: int


@dataclass(frozen=True)
class InputPlan:
    """The input as it was found. Windows are runs of `window_rows` rows in file order: the same for any cluster."""

    url: str
    files: list[InputFile]
    rows: int
    window_rows: int
    seek_points: list[tuple[str, int, int, int]]  # path, row of the input, row of the file, offset
    passed: pa.Schema
    duplicates: pa.Table = field(repr=False)

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return -(-self.rows // self.window_rows)

    def window_size(self, window: int) -> int:
        """Rows of a window."""
        return min(self.window_rows, self.rows - window * self.window_rows)

    def splits(self, window: int) -> Iterator[Split]:
        """The splits of one window, in order."""
        first, last = window * self.window_rows, window * self.window_rows + self.window_size(window)
        # Of a billion rows there are half a million points.
        place = max(0, bisect_right(self.seek_points, first, key=_row_of) - 1)
        while place < len(self.seek_points) and _row_of(self.seek_points[place]) < last:
            path, row, file_row, offset = self.seek_points[place]
            place += 1
            end = _row_of(self.seek_points[place]) if place < len(self.seek_points) else self.rows
            start, stop = max(row, first), min(end, last)
            if start < stop:
                yield Split(path, SeekPoint(file_row, offset), start - row, stop - start, start - first)

    def duplicates_of(self, window: int) -> dict[int, tuple[int, int]]:
        """Repeated ids of a window: row of the window -> (first row with that id, counted over the input; rank)."""
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
    """Read the whole input once. `UserError` where there is nothing to read. ``output``: see `list_input`.

    ``limit``: the input ends after so many rows, and is not read beyond.
    """
    fs, files = list_input(url, output)
    finder, schema, rows = DuplicateFinder(), SchemaFinder(), 0
    points: list[tuple[str, int, int, int]] = []
    for file in files:
        if limit is None or rows < limit:
            left = None if limit is None else limit - rows
            rows += _scan_file(fs, file.path, rows, columns, finder, schema, points, left)
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
    most: int | None,
) -> int:
    kind = format_of(path, columns.layout)
    stated = kind.schema(fs, path)
    if stated is not None:
        schema.add_schema(pa.schema([f for f in stated if f.name in columns.passed(dict.fromkeys(stated.names))]))
    chunk: list[dict[str, Any]] = []
    size = 0
    number, last_offset = 0, -1
    for number, (offset, row) in enumerate(_read(kind.scan(fs, path), path, most), start=1):
        at = number - 1
        if at == 0 or (offset != last_offset and at - (points[-1][2]) >= SPLIT_ROWS):
            # Formats that cannot be entered in the middle keep offset 0: one split, whatever their length.
            points.append((path, first + at, at, offset))
        last_offset = offset
        finder.add(columns.identity(row), first + at)
        if row.values is not None and stated is None:
            chunk.append(columns.passed(row.values))
            size += text_size(chunk[-1])
            if len(chunk) >= SPLIT_ROWS or size > MAX_PORTION:
                schema.add(chunk)
                chunk, size = [], 0
    schema.add(chunk)
    return number


def _read(rows: Iterator[Any], path: str, most: int | None) -> Iterator[Any]:
    try:
        yield from islice(rows, most)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error, pa.ArrowException) as error:
        raise UserError(f"input: cannot read {masked(path)}: {one_line(error)}") from None
