"""Read a small labelled table (training data, references) from a URL."""

from collections.abc import Sequence
from typing import Any

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, user_errors
from pipeline.storage.store.urls import open_url
from pipeline.untrusted import printable_name

from .columns import Columns
from .formats import InputRow, format_of
from .wrong_files import explain


def read_examples(url: str, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of a table of examples; `prompt` is the prompt as a job reads it, None if a row has none that is valid.

    ``columns``: others that the table must have.
    """
    rows = read_table(url, columns, ["prompt", "messages"])
    is_text, columns_of = _is_text(url), Columns()
    arranged = (columns_of.arranged(InputRow(row, is_text=is_text)).values or {} for row in rows)
    return [row | {"prompt": columns_of.read_prompt(values)[0]} for row, values in zip(rows, arranged, strict=True)]


def read_table(url: str, columns: list[str], one_of: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of one file of any input format, with all columns.

    In CSV, all columns are texts exactly as written, and an empty one is None. `UserError` if one of ``columns`` is
    missing, or each of ``one_of``.
    """
    shown = masked(url)
    with user_errors(f"data: cannot read {shown}"):
        fs, path = open_url(url)
        if fs.isdir(path):
            raise UserError(f"data: {shown} is a folder; give one of its files")
        file_format = format_of(path)
        try:
            return _rows([row for _, row in file_format.read(fs, path)], _is_text(path), shown, columns, one_of)
        except Exception:
            explain(fs, path, file_format.is_text, "data")
            raise


def _rows(
    found: list[InputRow], is_text: bool, shown: str, columns: list[str], one_of: Sequence[str]
) -> list[dict[str, Any]]:
    """The values of rows, with all columns; `UserError` for a bad row or a missing column. ``shown``: the file."""
    dead = next(((number, row.dead) for number, row in enumerate(found) if row.dead is not None), None)
    if dead is not None:
        raise UserError(f"data: cannot read {shown}: row {dead[0]}: {dead[1].message}")
    rows = [{k: None if is_text and v == "" else v for k, v in (row.values or {}).items()} for row in found]
    names = dict.fromkeys(name for row in rows for name in row)
    missing = [c for c in columns if c not in names]
    if one_of and not set(one_of) & names.keys():
        missing.append(" or ".join(one_of))
    if missing:
        there = ", ".join(map(printable_name, names))
        raise UserError(f"data: {shown} lacks the column(s) {', '.join(missing)}; it has {there}")
    return [{name: row.get(name) for name in names} for row in rows]


def _is_text(path: str) -> bool:
    return ".csv" in format_of(path).suffixes
