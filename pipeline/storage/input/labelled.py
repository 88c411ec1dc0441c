"""Read a small labelled table (training data, references) from a URL."""

from collections.abc import Sequence
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, user_errors

from .columns import Columns
from .files import name_without_query
from .formats import InputRow


def _read_csv(file: IO[bytes], columns: Sequence[str]) -> pa.Table:
    """Read CSV whose values may hold line breaks; ``columns`` are texts as written, and only an empty one is null."""
    return pyarrow.csv.read_csv(
        file,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )


_READERS: dict[str, Any] = {
    ".parquet": lambda file, columns: pyarrow.parquet.read_table(file),
    ".jsonl": lambda file, columns: pyarrow.json.read_json(file),
    ".csv": _read_csv,
}


def read_examples(url: str, columns: list[str]) -> list[dict[str, Any]]:
    """The rows of a table of examples; `prompt` is the prompt as a job reads it, None if a row has none that is valid.

    ``columns``: others that the table must have.
    """
    rows = read_table(url, columns, ["prompt", "messages"])
    is_text, columns_of = name_without_query(url).endswith(".csv"), Columns()
    arranged = (columns_of.arranged(InputRow(row, is_text=is_text)).values or {} for row in rows)
    return [row | {"prompt": columns_of.read_prompt(values)[0]} for row, values in zip(rows, arranged, strict=True)]


def read_table(url: str, columns: list[str], one_of: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of one Parquet, JSONL or CSV file, with all columns.

    In CSV, ``columns`` and ``one_of`` are texts exactly as written. `UserError` if one of ``columns`` is missing, or
    each of ``one_of``.
    """
    shown = masked(url)
    suffix = next((s for s in _READERS if name_without_query(url).endswith(s)), None)
    if suffix is None:
        raise UserError(f"data: {shown} has none of the suffixes {', '.join(_READERS)}")
    with user_errors(f"data: cannot read {shown}", (OSError, ValueError)), fsspec.open(url, "rb") as f:
        table = _READERS[suffix](f, [*columns, *one_of])
    missing = [c for c in columns if c not in table.column_names]
    if one_of and not set(one_of) & set(table.column_names):
        missing.append(" or ".join(one_of))
    if missing:
        found = ", ".join(table.column_names)
        raise UserError(f"data: {shown} lacks the column(s) {', '.join(missing)}; it has {found}")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
