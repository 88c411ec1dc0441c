"""Input formats. To add one, write a file with a `Format` and add it to `FORMATS`."""

from pipeline.errors import UserError
from pipeline.storage.input.files import name_without_query
from pipeline.storage.store.redact import masked

from .arrow import Arrow
from .base import Format, InputRow, SeekPoint
from .csv import Csv
from .jsonl import Jsonl
from .parquet import Parquet

FORMATS: tuple[Format, ...] = (Jsonl(), Parquet(), Csv(), Arrow())


def format_of(path: str) -> Format:
    """The format of a file, by its suffix; `UserError` for an unknown suffix."""
    for found in FORMATS:
        if name_without_query(path).endswith(found.suffixes):
            return found
    suffixes = ", ".join(suffix for found in FORMATS for suffix in found.suffixes)
    raise UserError(f"input: {masked(path)} has none of the suffixes {suffixes}")


__all__ = ["FORMATS", "Format", "InputRow", "SeekPoint", "format_of"]
