"""Input formats. To add one, write a file with a `Format` and add it to `FORMATS`."""

from pipeline.errors import UserError
from pipeline.storage.input.files import name_without_query
from pipeline.storage.store.redact import masked

from .arrow import Arrow
from .base import Format, InputRow, Layout, SeekPoint
from .csv import Csv
from .jsonl import Jsonl
from .openai_batch import OpenAiBatch
from .parquet import Parquet

FORMATS: tuple[Format, ...] = (Jsonl(), Parquet(), Csv(), Arrow(), OpenAiBatch())


def format_of(path: str, layout: Layout = "columns") -> Format:
    """The format of a file, by its suffix and the layout of its rows; `UserError` for an unknown suffix."""
    formats = [found for found in FORMATS if found.layout == layout]
    for found in formats:
        if name_without_query(path).endswith(found.suffixes):
            return found
    suffixes = ", ".join(suffix for found in formats for suffix in found.suffixes)
    raise UserError(f"input: {masked(path)} has none of the suffixes {suffixes} (input.layout={layout})")


__all__ = ["FORMATS", "Format", "InputRow", "Layout", "SeekPoint", "format_of"]
