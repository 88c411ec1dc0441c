"""JSON lines, plain or gzipped: one object a line; a bad line spoils no other."""

from collections.abc import Iterator
from typing import Any

import fsspec
import orjson
import pyarrow as pa

from pipeline.storage.input.files import named
from pipeline.storage.input.limits import MAX_COLUMNS, MAX_DEPTH, MAX_LINE, is_deeper, open_text

from .base import InputRow, SeekPoint, unreadable


class Jsonl:
    """Newline-delimited JSON. Plain files can be entered at any line, gzipped ones are read from their start."""

    def scan(self, fs: fsspec.AbstractFileSystem, path: str) -> Iterator[tuple[int, InputRow]]:
        """See `Format.scan`."""
        for offset, line in _lines(fs, path, 0):
            yield (0 if _gzipped(path) else offset), parse_line(line)

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint) -> Iterator[InputRow]:
        """See `Format.read`."""
        for _, line in _lines(fs, path, start.offset):
            yield parse_line(line)

    def schema(self, fs: fsspec.AbstractFileSystem, path: str) -> pa.Schema | None:
        """JSON states no column types."""
        return None


def parse_line(line: bytes) -> InputRow:
    """Parse one line (without its end) into a row."""
    if len(line) > MAX_LINE:
        return unreadable("RecordTooLong", f"the line is longer than {MAX_LINE} bytes", line[:2000])
    if not line.strip():
        return unreadable("EmptyLine", "the line is empty", "")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return unreadable("InvalidUtf8", f"byte {error.start} of the line is not UTF-8", line)
    try:
        values = orjson.loads(text.removeprefix("\ufeff"))
    except orjson.JSONDecodeError as error:
        return unreadable("InvalidJson", str(error), text)
    if not isinstance(values, dict):
        return unreadable("NotAnObject", f"the line holds a JSON {type(values).__name__}, not an object", text)
    if text.count("[") + text.count("{") > MAX_DEPTH and is_deeper(values, MAX_DEPTH):
        return unreadable("TooDeep", f"the values are nested deeper than {MAX_DEPTH} levels", text)
    if len(values) > MAX_COLUMNS:
        return unreadable("TooManyColumns", f"the object has {len(values)} keys, at most {MAX_COLUMNS} are taken", text)
    return InputRow(values)


def _lines(fs: fsspec.AbstractFileSystem, path: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """Lines without their ends, each with its byte offset in the (unpacked) file; at most MAX_LINE + 2 bytes each."""
    # Files of remote stores take no length in `readline`; a buffer over them does.
    with open_text(fs, path) as f:
        if offset:
            f.seek(offset)
        while line := f.readline(MAX_LINE + 2):
            skipped = _skip_line(f) if len(line) == MAX_LINE + 2 and not line.endswith(b"\n") else 0
            yield offset, line.removesuffix(b"\n").removesuffix(b"\r")
            offset += len(line) + skipped


def _skip_line(f: Any) -> int:
    skipped = 0
    while rest := f.readline(2**20):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped


def _gzipped(path: str) -> bool:
    return named(path).endswith(".gz")
