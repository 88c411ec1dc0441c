"""JSON lines, plain or compressed: one object per line. A bad line does not affect the others."""

import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from json import JSONDecodeError
from typing import Any

import fsspec

from pipeline.exact_json import loads, repeated_key
from pipeline.storage.input.compression import open_text, split_name
from pipeline.storage.input.limits import MAX_COLUMNS, MAX_DEPTH, MAX_LINE, is_deeper

from .base import FILE_START, Format, InputRow, LocatedRows, SeekPoint, unreadable

_NO_NUMBER = re.compile(r"[:,\[]\s*-?(NaN|Infinity)\b")


class Jsonl(Format):
    """Newline-delimited JSON. A plain file can be entered at any line, a compressed one is read from its start."""

    suffixes = (".jsonl", ".ndjson", ".json")
    is_text = True

    def read(self, fs: fsspec.AbstractFileSystem, path: str, start: SeekPoint = FILE_START) -> LocatedRows:
        """Yield the rows from ``start`` on."""
        _, compression = split_name(path)
        for offset, line in _lines(fs, path, start.offset):
            if len(line) > MAX_LINE or line.removeprefix(BOM_UTF8).strip():
                yield 0 if compression else offset, parse_line(line)


def parse_line(line: bytes) -> InputRow:
    """Parse one line, without its line end, into a row."""
    if len(line) > MAX_LINE:
        return unreadable("RecordTooLong", f"the line is longer than {MAX_LINE} bytes", line[:2000])
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return unreadable("InvalidUtf8", f"byte {error.start} of the line is not UTF-8", line)
    json_text = text.removeprefix("\ufeff")
    try:
        values = loads(json_text)
    except ValueError as error:
        found = _NO_NUMBER.search(text)
        advice = f"; {found[1]} is no JSON, write null or the text {found[1]!r}" if found else ""
        problem = str(error)
        if isinstance(error, JSONDecodeError):  # it counts lines too, but of this one
            problem = f"{error.msg}, at character {error.pos} of the line"
        return unreadable("InvalidJson", f"{problem}{advice}", text)
    if not isinstance(values, dict):
        return unreadable("NotAnObject", f"the line holds a JSON {type(values).__name__}, not an object", text)
    if text.count("[") + text.count("{") > MAX_DEPTH and is_deeper(values, MAX_DEPTH):
        return unreadable("TooDeep", f"the values are nested deeper than {MAX_DEPTH} levels", text)
    if (key := repeated_key(json_text, values)) is not None:
        return unreadable("RepeatedKey", f"an object has the key {key[:100]!r} twice", text)
    if len(values) > MAX_COLUMNS:
        return unreadable("TooManyColumns", f"the object has {len(values)} keys, at most {MAX_COLUMNS} are taken", text)
    return InputRow(values)


def _lines(fs: fsspec.AbstractFileSystem, path: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """Yield lines without their line ends, cut after MAX_LINE + 2 bytes, with their offsets in the unpacked file."""
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
