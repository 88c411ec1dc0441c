"""CSV with a header line. Values stay text, because inferring types would turn ``007`` into 7."""

import csv
import io
from collections.abc import Iterator
from itertools import islice

import fsspec

from pipeline.errors import UserError
from pipeline.storage.input.limits import MAX_COLUMNS, MAX_LINE, open_text
from pipeline.storage.store.redact import masked

from .base import FILE_START, Format, InputRow, LocatedRows, SeekPoint, unreadable

csv.field_size_limit(MAX_LINE)


class Csv(Format):
    """Comma-separated values, quoted as in RFC 4180. Fields may hold newlines, so files are read from their start."""

    suffixes = (".csv", ".csv.gz")

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START) -> LocatedRows:
        """Yield the rows from ``start`` on."""
        return ((0, row) for row in islice(_rows(fs, path), start.row, None))


def _rows(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[InputRow]:
    with open_text(fs, path) as binary:
        lines = _Lines(io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline=""))
        # Without strict, an unclosed quote would silently turn the rest of the file into one record.
        reader = csv.reader(lines, strict=True)
        header = _header(reader, masked(path))
        while header is not None:
            lines.start_record()
            try:
                fields = next(reader, None)
            except _TooLongError as error:
                yield unreadable("RecordTooLong", str(error), "")
                continue
            except csv.Error as error:
                yield unreadable("InvalidCsv", f"up to line {reader.line_num}: {error}", "")
                continue
            if fields is None:
                return
            yield _row(header, fields)


class _TooLongError(csv.Error):
    pass


class _Lines:
    """Lines for `csv.reader`, which takes one or more per record; a record has at most MAX_LINE characters."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self.start_record()

    def start_record(self) -> None:
        self._left = MAX_LINE

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._left -= len(line)
        if self._left < 0:
            while not line.endswith(("\n", "\r")) and (line := self._text.readline(2**20)):
                pass
            raise _TooLongError(f"the record is longer than {MAX_LINE} characters")
        return line


def _header(reader: Iterator[list[str]], path: str) -> list[str] | None:
    try:
        header = next(reader, None)
        "".join(header or []).encode()
    except csv.Error as error:
        raise UserError(f"input: {path} has a bad header: {error}") from None
    except UnicodeEncodeError:
        raise UserError(f"input: the header of {path} is not UTF-8; convert the file to UTF-8") from None
    if header is not None and len(set(header)) < max(1, len(header)):
        raise UserError(f"input: {path} has an empty header line, or a header that names a column twice")
    if header is not None and len(header) > MAX_COLUMNS:
        raise UserError(f"input: {path} has {len(header)} columns; the limit is {MAX_COLUMNS}")
    return header


def _row(header: list[str], fields: list[str]) -> InputRow:
    line = ",".join(fields)
    if not fields:
        return unreadable("EmptyLine", "the line is empty", "")
    if len(fields) != len(header):
        return unreadable("WrongFieldCount", f"{len(fields)} fields, the header has {len(header)}", _printable(line))
    try:
        line.encode()
    except UnicodeEncodeError:
        return unreadable("InvalidUtf8", "the line is not UTF-8", _printable(line))
    return InputRow(dict(zip(header, fields, strict=True)), is_text=True)


def _printable(line: str) -> str:
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
