"""CSV with a header line. Values stay text, because inferring types would turn ``007`` into 7."""

import csv
import io
from collections.abc import Iterator
from itertools import islice

import fsspec
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.storage.input.compression import open_text
from pipeline.storage.input.limits import MAX_LINE
from pipeline.storage.store.redact import masked

from .base import FILE_START, Format, InputRow, LocatedRows, SeekPoint, check_names, unreadable

csv.field_size_limit(MAX_LINE)


class Csv(Format):
    """Comma-separated values, quoted as in RFC 4180. Fields may hold newlines, so files are read from their start."""

    suffixes = (".csv",)
    is_text = True

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START) -> LocatedRows:
        """Yield the rows from ``start`` on."""
        return ((0, row) for row in islice(_rows(fs, path), start.row, None))

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """The columns of the header, all text."""
        with open_text(fs, path) as binary:
            header = _header(csv.reader(_Lines(binary, path), strict=True), masked(path))
        return pa.schema([(name, pa.string()) for name in header])


def _rows(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[InputRow]:
    with open_text(fs, path) as binary:
        lines = _Lines(binary, path)
        # Without strict, an unclosed quote would silently turn the rest of the file into one record.
        reader = csv.reader(lines, strict=True)
        header = _header(reader, masked(path))
        while header:
            lines.start_record()
            try:
                fields = next(reader, None)
            except _TooLongError as error:
                yield unreadable("RecordTooLong", str(error), lines.start_text)
                continue
            except csv.Error as error:
                yield unreadable("InvalidCsv", f"up to line {lines.number}: {error}", lines.start_text)
                continue
            if fields is None:
                return
            if fields:
                yield _row(header, fields)


class _TooLongError(csv.Error):
    pass


class _Lines:
    """Lines for `csv.reader`, which takes one or more per record; a record has at most MAX_LINE characters.

    More than one means that a quote is open. If the file ends there, or the record gets too long, a quote is missing
    somewhere, and nobody knows how many records it has taken: `UserError`, since one dead letter would hide them.
    """

    def __init__(self, binary: io.BufferedReader, path: str) -> None:
        self._text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._path = path
        self.number = 0  # of the last line, from 1
        self.start_record()

    def start_record(self) -> None:
        self._left, self._first, self._start = MAX_LINE, "", self.number + 1

    @property
    def start_text(self) -> str:
        """The first line of the record, as far as it can be shown."""
        return _printable(self._first[:2000].rstrip("\r\n"))

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        self._left -= len(line)
        if (not line or self._left < 0) and self.number > self._start:
            raise UserError(
                f"input: {masked(self._path)} has an open quote, or more than {MAX_LINE} characters, in the record of"
                f" lines {self._start} to {self.number}; mend it, or write the file again"
            )
        if not line:
            raise StopIteration
        self.number += 1
        self._first = self._first or line
        if self._left < 0:
            while not line.endswith(("\n", "\r")) and (line := self._text.readline(2**20)):
                pass
            raise _TooLongError(f"the record is longer than {MAX_LINE} characters")
        return line


def _header(reader: Iterator[list[str]], path: str) -> list[str]:
    """The names of the columns; empty if the file is."""
    try:
        header = next(reader, None)
        "".join(header or []).encode()
    except csv.Error as error:
        raise UserError(f"input: {path} has a bad header: {error}") from None
    except UnicodeEncodeError:
        raise UserError(f"input: the header of {path} is not UTF-8; convert the file to UTF-8") from None
    if header == []:
        raise UserError(f"input: {path} has an empty first line, which must name the columns")
    check_names(header or [], path)
    return header or []


def _row(header: list[str], fields: list[str]) -> InputRow:
    line = ",".join(fields)
    if len(fields) != len(header):
        return unreadable("WrongFieldCount", f"{len(fields)} fields, the header has {len(header)}", _printable(line))
    try:
        line.encode()
    except UnicodeEncodeError:
        return unreadable("InvalidUtf8", "the line is not UTF-8", _printable(line))
    return InputRow(dict(zip(header, fields, strict=True)), is_text=True)


def _printable(line: str) -> str:
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
