"""Input formats. To add one, write a file with a `Format` and add it to `FORMATS`."""

from pipeline.errors import UserError
from pipeline.storage.input.compression import COMPRESSED, split_name
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
    name, compression = split_name(path)
    for found in formats:
        if name.endswith(found.suffixes) and (found.is_text or not compression):
            return found
    plain, text = ([s for f in formats if f.is_text == packed for s in f.suffixes] for packed in (False, True))
    raise UserError(
        f"input: {masked(path)} has none of the suffixes {', '.join([*plain, *text])} (input.layout={layout});"
        f" after {', '.join(text)}, also {', '.join(COMPRESSED)}"
    )


__all__ = ["FORMATS", "Format", "InputRow", "Layout", "SeekPoint", "format_of"]
