"""Plan a job in one pass over the input: number of rows, seek points, column types, repeated ids."""

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa

from pipeline.conversations import hint
from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, user_errors

from .columns import Columns
from .duplicates import DuplicateFinder
from .files import InputFile, list_input
from .formats import SeekPoint, format_of
from .limits import MAX_BATCH_CHARS, text_size
from .schema import SchemaFinder

SPLIT_ROWS = 2048  # rows between two seek points
_READ_ERRORS = (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error, pa.ArrowException)


@dataclass(frozen=True)
class Split:
    """``take`` rows of a file after ``skip`` rows from ``start`` on; ``row``: the index of the first in its window."""

    path: str
    start: SeekPoint
    skip: int
    take: int
    row: int


class PlanPoint(NamedTuple):
    """A seek point of the input: ``row`` of the input is ``file_row`` of the file, and stands at ``offset``."""

    path: str
    row: int
    file_row: int
    offset: int


@dataclass(frozen=True)
class InputPlan:
    """The input as it was found. A window is the next `window_rows` rows in file order, the same on any cluster.

    ``no_prompt``: what to do if no row has a prompt; empty if one has.
    """

    url: str
    files: list[InputFile]
    rows: int
    window_rows: int
    seek_points: list[PlanPoint]
    passed: pa.Schema
    duplicates: pa.Table = field(repr=False)
    no_prompt: str = ""

    @property
    def windows(self) -> int:
        """The number of windows."""
        return -(-self.rows // self.window_rows)

    def check_prompts(self) -> None:
        """Raise `UserError` if no row has a prompt."""
        if self.no_prompt:
            raise UserError(f"input: no record of {self.url} has a prompt; {self.no_prompt}")

    def window_size(self, window: int) -> int:
        """The number of rows of a window."""
        return min(self.window_rows, self.rows - window * self.window_rows)

    def splits(self, window: int) -> Iterator[Split]:
        """The splits of one window, in order."""
        first, last = window * self.window_rows, window * self.window_rows + self.window_size(window)
        points = self.seek_points  # half a million for a billion rows
        index = max(0, bisect_right(points, first, key=attrgetter("row")) - 1)
        while index < len(points) and points[index].row < last:
            point = points[index]
            index += 1
            end = points[index].row if index < len(points) else self.rows
            start, stop = max(point.row, first), min(end, last)
            if start < stop:
                seek = SeekPoint(point.file_row, point.offset)
                yield Split(point.path, seek, start - point.row, stop - start, start - first)

    def duplicates_of(self, window: int) -> dict[int, tuple[int, int]]:
        """Repeated ids of a window: row of the window -> (first row of the input with that id, rank)."""
        first = window * self.window_rows
        rows = self.duplicates["row"].to_numpy()
        low, high = rows.searchsorted([first, first + self.window_size(window)])
        part = self.duplicates.slice(low, high - low).to_pylist()
        return {d["row"] - first: (d["first"], d["rank"]) for d in part}


def plan_input(
    url: str, window_rows: int, columns: Columns, output: str | None = None, limit: int | None = None
) -> InputPlan:
    """Read the whole input once. ``output``: see `list_input`; ``limit``: read only this many rows.

    Raises `UserError` if the input has no record or a file cannot be read.
    """
    fs, files = list_input(url, output)
    scan = _Scan(fs, columns)
    for file in files:
        if limit is None or scan.rows < limit:
            scan.add_file(file.path, None if limit is None else limit - scan.rows)
    if scan.rows == 0:
        raise UserError(f"input: no record in {masked(url)} ({len(files)} file(s))")
    passed, duplicates = scan.schema.schema(), scan.duplicates.find()
    no_prompt = hint(passed.names, columns.layout) if scan.has_rows and not scan.has_prompts else ""
    return InputPlan(masked(url), files, scan.rows, window_rows, scan.points, passed, duplicates, no_prompt)


class _Scan:
    """Collects the rows, seek points, column types and ids of the input, file by file."""

    def __init__(self, fs: fsspec.AbstractFileSystem, columns: Columns) -> None:
        self.fs, self.columns = fs, columns
        self.rows = 0
        self.has_rows = self.has_prompts = False
        self.points: list[PlanPoint] = []
        self.schema, self.duplicates = SchemaFinder(), DuplicateFinder()

    def add_file(self, path: str, max_rows: int | None) -> None:
        """Read a file, at most ``max_rows`` rows of it; `UserError` if that fails."""
        file_format = format_of(path)
        # A request has other columns than its file.
        file_schema = None if self.columns.layout == "openai_batch" else file_format.schema(self.fs, path)
        if file_schema is not None:
            self.columns.check_types(file_schema, path)
            passed = [*self.columns.passed(dict.fromkeys(file_schema.names))]
            self.schema.add_schema(pa.schema([file_schema.field(name) for name in passed]))
        chunk: list[dict[str, Any]] = []
        batch: pa.RecordBatch | None = None
        size, last_offset = 0, -1
        for file_row, (offset, given) in enumerate(_read(file_format.read(self.fs, path), path, max_rows)):
            row = self.columns.arranged(given)
            if file_row == 0 or (offset != last_offset and file_row - self.points[-1].file_row >= SPLIT_ROWS):
                # A format that cannot be entered in the middle keeps offset 0, so a file of any length is one split.
                self.points.append(PlanPoint(path, self.rows, file_row, offset))
            last_offset = offset
            self.duplicates.add(self.columns.identity(row), self.rows)
            self.rows += 1
            if row.cells is not None and row.cells.batch is not batch:
                batch = row.cells.batch
                self.schema.add_batch(batch, passed)
            self.has_rows = self.has_rows or row.values is not None
            self.has_prompts = self.has_prompts or self.columns.has_prompt(row)
            if row.values is not None and file_schema is None:
                chunk.append(self.columns.passed(row.values))
                size += text_size(chunk[-1])
                if len(chunk) >= SPLIT_ROWS or size > MAX_BATCH_CHARS:
                    self.schema.add(chunk)
                    chunk, size = [], 0
        self.schema.add(chunk)


def _read(rows: Iterator[Any], path: str, max_rows: int | None) -> Iterator[Any]:
    with user_errors(f"input: cannot read {masked(path)}", _READ_ERRORS):
        yield from islice(rows, max_rows)
