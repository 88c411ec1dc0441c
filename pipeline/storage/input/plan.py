"""Plan a job in one pass over the input: number of rows, seek points, column types, repeated ids."""

import lzma
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from operator import attrgetter
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa

from pipeline.errors import UserError, first_names
from pipeline.storage.store.redact import masked, user_errors

from .columns import Columns
from .duplicates import DuplicateFinder
from .files import InputFile, Listing, list_input
from .formats import Format, SeekPoint, format_of
from .formats.base import LocatedRows
from .limits import MAX_BATCH_CHARS, text_size
from .partitions import Partition, arranged, partitions
from .schema import SchemaFinder
from .wrong_files import RecordSearch, check_columns, check_prompt, explain

SPLIT_ROWS = 2048  # rows between two seek points
_READ_ERRORS = (
    *(OSError, EOFError, ValueError, OverflowError, MemoryError),
    *(zlib.error, lzma.LZMAError, pa.ArrowException),
)


@dataclass(frozen=True)
class Split:
    """``take`` rows of a file after ``skip`` rows from ``start`` on; ``row``: the index of the first in its window.

    ``partition``: values of columns that the file's folders give.
    """

    path: str
    start: SeekPoint
    skip: int
    take: int
    row: int
    partition: Partition


class PlanPoint(NamedTuple):
    """A seek point of the input: ``row`` of the input is ``file_row`` of the file, and stands at ``offset``."""

    path: str
    row: int
    file_row: int
    offset: int


@dataclass(frozen=True)
class InputPlan:
    """The input as it was found. A window is the next `window_rows` rows in file order, the same on any cluster.

    ``skipped``: names of files that are no data. ``no_record``: why no row is a record; empty if one is.
    """

    url: str
    files: list[InputFile]
    skipped: list[str]
    rows: int
    window_rows: int
    seek_points: list[PlanPoint]
    passed: pa.Schema
    duplicates: pa.Table = field(repr=False)
    no_record: str = ""

    @property
    def skipped_files(self) -> str:
        """A sentence that names files that are no data; empty if there are none."""
        names = first_names(self.skipped)
        return f"left out, as their names are not those of data: {names}" if names else ""

    @property
    def windows(self) -> int:
        """The number of windows."""
        return -(-self.rows // self.window_rows)

    @cached_property
    def partitions(self) -> dict[str, Partition]:
        """The partition of each file."""
        return partitions([file.path for file in self.files])[0]

    def check_records(self) -> None:
        """Raise `UserError` if no row can be read, or none has a prompt, or none an id that is one."""
        if self.no_record:
            raise UserError(f"input: no record of {self.url} {self.no_record}")

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
                partition = self.partitions[point.path]
                yield Split(point.path, seek, start - point.row, stop - start, start - first, partition)

    def duplicates_of(self, window: int) -> dict[int, tuple[int, int]]:
        """Repeated ids of a window: row of the window -> (first row of the input with that id, rank)."""
        first = window * self.window_rows
        rows = self.duplicates["row"].to_numpy()
        low, high = rows.searchsorted([first, first + self.window_size(window)])
        part = self.duplicates.slice(low, high - low).to_pylist()
        return {d["row"] - first: (d["first"], d["rank"]) for d in part}


def check_input(url: str, columns: Columns, output: str | None = None) -> Listing:
    """List the input and read its first row; raises `UserError` as `plan_input`, in a moment. ``output``: as there."""
    listing = list_input(url, output)
    _Scan(listing.fs, columns, [file.path for file in listing.files]).add_file(listing.files[0].path, 1)
    return listing


def plan_input(
    url: str,
    window_rows: int,
    columns: Columns,
    output: str | None = None,
    limit: int | None = None,
    listing: Listing | None = None,
) -> InputPlan:
    """Read the whole input once. ``output``: see `list_input`; ``limit``: read only this many rows.

    ``listing``: of the input, if it is known. Raises `UserError` if the input has no record or a file cannot be read.
    """
    fs, files, skipped = listing or list_input(url, output)
    scan = _Scan(fs, columns, [file.path for file in files])
    for file in files:
        if limit is None or scan.rows < limit:
            scan.add_file(file.path, None if limit is None else limit - scan.rows)
    if scan.rows == 0:
        raise UserError(f"input: no record in {masked(url)} ({len(files)} file(s))")
    if scan.names and columns.layout != "openai_batch":  # the layout says where they are
        check_columns(columns, scan.names, url)
    passed, duplicates = scan.schema.schema(), scan.duplicates.find()
    no_record = scan.search.problem(passed.names)
    return InputPlan(masked(url), files, skipped, scan.rows, window_rows, scan.points, passed, duplicates, no_record)


class _Scan:
    """Collects the rows, seek points, column names and types, and ids of the input, file by file."""

    def __init__(self, fs: fsspec.AbstractFileSystem, columns: Columns, paths: list[str]) -> None:
        self.fs, self.columns = fs, columns
        self.rows = 0
        self.search = RecordSearch(columns)
        self.points: list[PlanPoint] = []
        self.names: dict[str, None] = {}
        self.schema, self.duplicates = SchemaFinder(), DuplicateFinder()
        self._partitions, self._partition_schema = partitions(paths)

    def add_file(self, path: str, max_rows: int | None) -> None:
        """Read a file, at most ``max_rows`` rows of it; `UserError` if that fails, or if it is something else."""
        before, file_format = self.rows, format_of(path)
        try:
            self._add_file(path, file_format, max_rows)
        except UserError:
            if self.rows == before:
                explain(self.fs, path, file_format.is_text)
            raise

    def _add_file(self, path: str, file_format: Format, max_rows: int | None) -> None:
        partition = self._partitions[path]
        with _reading(path):  # a request has other columns than its file
            file_schema = None if self.columns.layout == "openai_batch" else file_format.schema(self.fs, path)
        passed = [*self.columns.passed(dict.fromkeys(file_schema.names if file_schema else []))]
        # The types of a file without rows do not count.
        self.schema.add_schema(pa.schema([(name, pa.null()) for name in passed]))
        chunk: list[dict[str, Any]] = []
        batch: pa.RecordBatch | None = None
        size, last_offset = 0, -1
        for file_row, (offset, row) in enumerate(islice(self._rows(path, file_format), max_rows)):
            if file_row == 0 and file_schema is not None:
                self.columns.check_types(file_schema, path)
                if self.columns.layout == "columns":
                    check_prompt(self.columns, [*file_schema.names, *partition], path)
                self.schema.add_schema(pa.schema([file_schema.field(name) for name in passed]))
            if file_row == 0 or (offset != last_offset and file_row - self.points[-1].file_row >= SPLIT_ROWS):
                # A format that cannot be entered in the middle keeps offset 0, so a file of any length is one split.
                self.points.append(PlanPoint(path, self.rows, file_row, offset))
            last_offset = offset
            self.duplicates.add(self.columns.identity(row), self.rows)
            self.rows += 1
            if not self.search.is_over:
                self.search.look_at(row)
            if row.values is None:
                continue
            if row.cells is not None and row.cells.batch is not batch:
                batch = row.cells.batch
                self.schema.add_batch(batch, passed)
            if not row.values.keys() <= self.names.keys():
                self.names |= dict.fromkeys(row.values)
            if file_schema is None:
                values = {k: v for k, v in row.values.items() if k not in partition} if partition else row.values
                chunk.append(self.columns.passed(values))
                size += text_size(chunk[-1])
                if len(chunk) >= SPLIT_ROWS or size > MAX_BATCH_CHARS:
                    self.schema.add(chunk)
                    chunk, size = [], 0
        self.schema.add(chunk)
        keys = self.columns.passed(partition).keys() - set(passed)  # a file's own column has the same values
        self.schema.add_schema(pa.schema([f for f in self._partition_schema if f.name in keys]))

    def _rows(self, path: str, file_format: Format) -> LocatedRows:
        """The rows of a file; `UserError` if it has no good first one and seems to be something else."""
        rows = self._read(path, file_format)
        first = next(rows, None)
        if first is not None and first[1].values is not None:
            return chain([first], rows)
        explain(self.fs, path, file_format.is_text)
        return self._read(path, file_format)  # from the start: a file in fsspec's memory has one position for all

    def _read(self, path: str, file_format: Format) -> LocatedRows:
        with _reading(path):
            yield from arranged(file_format.read(self.fs, path), path, self._partitions[path], self.columns)


def _reading(path: str) -> AbstractContextManager[None]:
    return user_errors(f"input: cannot read {masked(path)}", _READ_ERRORS)
