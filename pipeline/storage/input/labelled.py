"""Read a small labelled table (training data, references) from a URL."""

from typing import Any

import fsspec
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, user_errors

from .files import name_without_query

_READERS: dict[str, Any] = {
    ".parquet": pyarrow.parquet.read_table,
    ".jsonl": pyarrow.json.read_json,
    ".csv": pyarrow.csv.read_csv,
}


def read_table(url: str, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of one Parquet, JSONL or CSV file, with all columns; `UserError` if one of ``columns`` is missing."""
    shown = masked(url)
    suffix = next((s for s in _READERS if name_without_query(url).endswith(s)), None)
    if suffix is None:
        raise UserError(f"data: {shown} has none of the suffixes {', '.join(_READERS)}")
    with user_errors(f"data: cannot read {shown}", (OSError, ValueError)), fsspec.open(url, "rb") as f:
        table = _READERS[suffix](f)
    missing = [c for c in columns if c not in table.column_names]
    if missing:
        found = ", ".join(table.column_names)
        raise UserError(f"data: {shown} lacks the column(s) {', '.join(missing)}; it has {found}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
