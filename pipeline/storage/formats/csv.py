"""CSV with a header line. Values stay text: guessing types would turn ``007`` into 7."""

import csv
import io
from collections.abc import Iterator
from itertools import islice

import fsspec
import pyarrow as pa

from ...errors import UserError
from .base import Row, SeekPoint, unreadable

csv.field_size_limit(16 * 2**20)


class Csv:
    """Comma-separated values, quoted as in RFC 4180. Fields may hold newlines, so files are read from their start."""

    def scan(self, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[int, Row]]:
        """See `Format.scan`."""
        for row in _rows(fs, path):
            yield 0, row

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint) -> Iterator[Row]:
        """See `Format.read`."""
        yield from islice(_rows(fs, path), start.row, None)

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """All columns are text, as the values show."""
        return None


def _rows(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[Row]:
    compression = "gzip" if path.lower().endswith(".gz") else None
    with fs.open(path, "rb", compression=compression) as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.reader(text)
        header = _header(reader, path)
        while header is not None:
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield unreadable("InvalidCsv", str(error), "")
                continue
            if fields is None:
                return
            yield _row(header, fields)


def _header(reader: Iterator[list[str]], path: str) -> list[str] | None:
    try:
        header = next(reader, None)
        "".join(header or []).encode()
    except csv.Error as error:
        raise UserError(f"input: {path} has a bad header: {error}") from None
    except UnicodeEncodeError:
        raise UserError(f"input: the header of {path} is not UTF-8; convert the file to UTF-8") from None
    if header is not None and len(set(header)) < max(1, len(header)):
        raise UserError(f"input: {path} has an empty header line, or names a column twice in it")
    return header


def _row(header: list[str], fields: list[str]) -> Row:
    line = ",".join(fields)
    if not fields:
        return unreadable("EmptyLine", "the line is empty", "")
    if len(fields) != len(header):
        return unreadable("WrongFieldCount", f"{len(fields)} fields, the header has {len(header)}", _shown(line))
    try:
        line.encode()
    except UnicodeEncodeError:
        return unreadable("InvalidUtf8", "the line is not UTF-8", _shown(line))
    return Row(dict(zip(header, fields, strict=True)))


def _shown(line: str) -> str:
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
