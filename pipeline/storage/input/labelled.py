"""Read a small labelled table (training data, references) from a URL."""

from typing import Any

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, user_errors
from pipeline.storage.store.urls import open_url

from .formats import format_of


def read_table(url: str, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of one file of any input format, with all columns; `UserError` if one of ``columns`` is missing.

    In CSV, all columns are texts exactly as written, and an empty one is None.
    """
    shown = masked(url)
    with user_errors(f"data: cannot read {shown}"):
        fs, path = open_url(url)
        file_format = format_of(path)
        found = [row for _, row in file_format.read(fs, path)]
    dead = next(((number, row.dead) for number, row in enumerate(found) if row.dead is not None), None)
    if dead is not None:
        raise UserError(f"data: cannot read {shown}: row {dead[0]}: {dead[1].message}")
    is_text = ".csv" in file_format.suffixes
    rows = [{k: None if is_text and v == "" else v for k, v in (row.values or {}).items()} for row in found]
    names = dict.fromkeys(name for row in rows for name in row)
    missing = [c for c in columns if c not in names]
    if missing:
        raise UserError(f"data: {shown} lacks the column(s) {', '.join(missing)}; it has {', '.join(names)}")
    return [{name: row.get(name) for name in names} for row in rows]
