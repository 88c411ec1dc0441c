"""Columns that folders give: the files below ``dt=2026-11-01/`` have the column `dt`, as Hive and Spark write them."""

from collections.abc import Sequence
from itertools import chain
from urllib.parse import unquote

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked

from .columns import Columns
from .formats.base import LocatedRows

Partition = dict[str, int | str | None]
"""The partition keys in the folders of a file, and their values."""

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""The value of a folder that stands for null."""


def partitions(paths: Sequence[str]) -> tuple[dict[str, Partition], pa.Schema]:
    """The partition of each file, and the types of all keys: int32 if each value is one, else text, as in pyarrow.

    Every folder of a path counts, so that the same file has the same columns whether it is given by itself, by its
    folder or by a folder above.
    """
    texts = {path: _keys(path) for path in paths}
    names = dict.fromkeys(chain.from_iterable(texts.values()))
    columns = {name: _typed([found.get(name) for found in texts.values()]) for name in names}
    values = {
        path: {name: columns[name][index].as_py() for name in found}
        for index, (path, found) in enumerate(texts.items())
    }
    return values, pa.schema([(name, column.type) for name, column in columns.items()])


def arranged(rows: LocatedRows, path: str, partition: Partition, columns: Columns) -> LocatedRows:
    """The rows of a file, with the keys of its partition as columns; `UserError` if a column and its key differ."""
    for offset, given in rows:
        row = columns.arranged(given)
        for name, value in partition.items():
            found = value if row.values is None else row.values.setdefault(name, value)
            if found != value or type(found) is not type(value):
                raise UserError(
                    f"input: a record of {masked(path)} has {repr(found)[:100]} in the column {name!r}, and its folder"
                    f" says {value!r}; rename the folder, or the column of the file"
                )
        yield offset, row


def _keys(path: str) -> dict[str, str | None]:
    """The keys in a path's folders, and their values as text; a web address is taken without its query."""
    folders = (path.partition("?")[0] if "://" in path else path).split("/")[:-1]
    found: dict[str, str | None] = {}
    for folder in folders:
        key, equals, value = folder.partition("=")
        if not key or not equals:
            continue
        try:
            name = unquote(key, errors="strict")
            text = None if value == HIVE_NULL else unquote(value, errors="strict")
        except UnicodeDecodeError:
            raise UserError(f"input: the folder {folder!r} of {masked(path)} is not UTF-8; rename it") from None
        if found.setdefault(name, text) != text:
            raise UserError(f"input: {masked(path)} has two folders with the key {name!r}; rename one of them")
    return found


def _typed(texts: list[str | None]) -> pa.Array:
    values = pa.array(texts, pa.string())
    try:
        return values if values.null_count == len(values) else values.cast(pa.int32())
    except pa.ArrowInvalid:
        return values
