"""Small labelled tables (training data, references) read whole from a URL."""

from typing import Any

import fsspec
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, one_line

from .files import named

_READERS: dict[str, Any] = {
    ".parquet": pyarrow.parquet.read_table,
    ".jsonl": pyarrow.json.read_json,
    ".csv": pyarrow.csv.read_csv,
}


def read_table(url: str, columns: list[str]) -> list[dict[str, Any]]:
    """Rows of one Parquet, JSONL or CSV file that must have ``columns``; further columns stay."""
    shown = masked(url)
    suffix = next((s for s in _READERS if named(url).endswith(s)), None)
    if suffix is None:
        raise UserError(f"data: {shown} is none of {', '.join(_READERS)}")
    try:
        with fsspec.open(url, "rb") as f:
            table = _READERS[suffix](f)
    except (OSError, ValueError) as error:
        raise UserError(f"data: cannot read {shown}: {one_line(error)}") from None
    missing = [c for c in columns if c not in table.column_names]
    if missing:
        raise UserError(
            f"data: {shown} lacks the column(s) {', '.join(missing)}; it has {', '.join(table.column_names)}"
        )
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
