"""Find what would make a dead letter of every record: a file that is not what its name says, columns of other names."""

import json
from collections.abc import Collection
from contextlib import suppress

import fsspec
import orjson

from pipeline.conversations import hint
from pipeline.errors import UserError
from pipeline.records import DeadLetter
from pipeline.storage.store.redact import masked
from pipeline.untrusted import stand_in

from .columns import Columns
from .compression import open_text, split_name
from .formats import InputRow

_HEAD_BYTES = 2**16
_PACKED = {
    b"\x1f\x8b": ("gzip", ".gz"),
    b"BZh": ("bzip2", ".bz2"),
    b"\xfd7zXZ\0": ("xz", ".xz"),
    b"\x28\xb5\x2f\xfd": ("zstd", ".zst"),
    b"\x04\x22\x4d\x18": ("lz4", ".lz4"),
}
_TYPED = {b"PAR1": ("Parquet", ".parquet"), b"ARROW1": ("Arrow", ".arrow")}
_OTHER_MAGIC = {b"PK\x03\x04": "a ZIP file or a spreadsheet", b"%PDF": "PDF"}
_BYTE_ORDER_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_UNSEEN = " \t\xa0\u200b\ufeff"
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def explain(fs: fsspec.AbstractFileSystem, path: str, is_text: bool, key: str = "input") -> None:
    """Raise `UserError` if a file that cannot be read seems to be something else than its name says.

    ``is_text``: whether it should hold text. ``key``: starts the message.
    """
    seems = None
    with suppress(Exception):  # the error of the reader is the one to tell
        seems = _what_it_seems(fs, path, is_text)
    if seems is not None:
        raise UserError(f"{key}: {masked(path)} {seems}")


def _what_it_seems(fs: fsspec.AbstractFileSystem, path: str, is_text: bool) -> str | None:
    name, compression = split_name(path)
    with fs.open(path, "rb") as opened:
        head = bytes(opened.read(_HEAD_BYTES))
    if what := stand_in(head):
        return f"is {what}"
    for magic, (kind, suffix) in (_TYPED | (_PACKED if is_text else {})).items():
        if head.startswith(magic) and not (name + compression).endswith((suffix, ".feather")):
            return f"holds {kind}; its name must end with {suffix}"
    if not is_text:
        is_cut = head.startswith(b"ARROW1") and fs.tail(path, 6) != b"ARROW1"
        return "is an Arrow file, and its end is missing; write it again" if is_cut else None
    for magic, kind in _OTHER_MAGIC.items():
        if head.startswith(magic):
            return f"is {kind}; write it as JSON lines or Parquet"
    content = _unpacked_head(fs, path) if compression else head
    if compression and content.startswith((*_PACKED, *_TYPED)):
        return "holds a file that is packed itself; unpack it once"
    return _text_problem(content, name)


class RecordSearch:
    """Looks at rows until one may be a record: it can be read, has a prompt, good or bad, and no bad id."""

    def __init__(self, columns: Columns) -> None:
        self.is_over = False
        self._columns = columns
        self._has_values = self._has_prompt = False
        self._turns: str | None = None  # see `Columns.turns`
        self._dead: DeadLetter | None = None

    def look_at(self, row: InputRow) -> None:
        """Look at the next row."""
        dead = row.dead if row.values is None else self._columns.bad_id(row.values)
        has_prompt = self._columns.has_prompt(row)
        self._has_values |= row.values is not None
        self._has_prompt |= has_prompt
        self._turns = self._turns or self._columns.turns(row.values or {})
        self._dead = self._dead or dead
        self.is_over = has_prompt and dead is None

    def problem(self, names: Collection[str]) -> str:
        """The rest of a sentence on the rows if none may be a record, else empty. ``names``: columns passed through."""
        if self.is_over:
            return ""
        if self._dead is None or (self._has_values and not self._has_prompt):
            return f"has a prompt; {hint([*names], self._columns.layout, self._turns)}"
        return f"can be used; the first: {self._dead.error_type}: {self._dead.message}"


def check_prompt(columns: Columns, names: Collection[str], path: str) -> None:
    """Raise `UserError` if the columns ``names`` of a file hold no prompt."""
    if not {columns.prompt, columns.messages} & set(names):
        others = [*columns.passed(dict.fromkeys(names))]
        raise UserError(f"input: no record of {masked(path)} has a prompt; {hint(others, columns.layout)}")


def check_columns(columns: Columns, names: Collection[str], url: str) -> None:
    """Raise `UserError` if a column that the config names is not among the columns of the whole input."""
    named = {"id": columns.id, "sampling": columns.sampling, "choices": columns.choices}
    for key, name in named.items():
        # Without the default column `id`, the id of a record is a hash of it; a blank or mark around it is not meant.
        is_default = name == Columns.id and name not in (given.strip(_UNSEEN) for given in names)
        if name is not None and name not in names and not is_default:
            raise UserError(
                f"input: no record has the column {name!r} (input.{key}_column); {masked(url)} has"
                f" {', '.join(map(repr, names))}"
            )


def _unpacked_head(fs: fsspec.AbstractFileSystem, path: str) -> bytes:
    """The start of a compressed file's content; empty if it cannot be unpacked."""
    try:
        with open_text(fs, path) as opened:
            return opened.read(_HEAD_BYTES)
    except Exception:  # the error of the reader is the one to tell
        return b""


def _text_problem(head: bytes, name: str) -> str | None:
    if encoding := _encoding(head):
        return f"is {encoding}, not UTF-8; convert it with iconv -f {encoding} -t UTF-8"
    text = head.decode("utf-8", "replace").removeprefix("\ufeff").lstrip()
    return _csv_problem(text) if name.endswith(".csv") else _json_problem(text)


def _encoding(head: bytes) -> str | None:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding
    # Without a mark: every second byte of ASCII text in UTF-16 is zero.
    even, odd = head[::2].count(0), head[1::2].count(0)
    return "UTF-16LE" if odd > len(head) // 4 > 4 * even else "UTF-16BE" if even > len(head) // 4 > 4 * odd else None


def _csv_problem(text: str) -> str | None:
    header = text.partition("\n")[0].rstrip("\r")
    if header.startswith(("{", "[")):
        return "holds JSON; its name must end with .jsonl"
    separator = max((",", *_SEPARATORS), key=header.count)
    if separator in _SEPARATORS:
        return f"is separated by {_SEPARATORS[separator]}; write it with commas"
    blanks = [name for name in header.split(",") if name != name.strip()]
    return f"has a blank around the name {blanks[0]!r} in its header; write it without" if blanks else None


def _json_problem(text: str) -> str | None:
    first, _, others = text.partition("\n")
    if first.startswith("[") and (not _is_json(first) or not any(map(_is_json, others.splitlines()))):
        return "is one JSON array, not one object a line; convert it with jq -c '.[]'"
    if first.startswith("{'"):
        return "holds Python's dicts, not JSON; write each with json.dumps"
    if not first.startswith("{"):
        return None
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        end = 0
    rest = text[end : len(first)].strip()
    if first.strip() == "{" or end > len(first) or (end and rest.startswith("{")):
        return "holds JSON objects that are not one a line; convert it with jq -c ."
    return "has a comma behind each object; write one object a line, without it" if end and rest == "," else None


def _is_json(line: str) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True
