"""Input formats. To add one, write a file with a `Format` and add it to `FORMATS`."""

from pipeline.errors import UserError
from pipeline.storage.input.compression import COMPRESSED, split_name
from pipeline.storage.store.redact import masked

from .arrow import Arrow
from .base import Format, InputRow, SeekPoint
from .csv import Csv
from .jsonl import Jsonl
from .parquet import Parquet

FORMATS: tuple[Format, ...] = (Jsonl(), Parquet(), Csv(), Arrow())


def format_of(path: str) -> Format:
    """The format of a file, by its suffix; `UserError` for an unknown suffix."""
    name, compression = split_name(path)
    for found in FORMATS:
        if name.endswith(found.suffixes) and (found.is_text or not compression):
            return found
    plain, text = ([s for f in FORMATS if f.is_text == packed for s in f.suffixes] for packed in (False, True))
    raise UserError(
        f"input: {masked(path)} has none of the suffixes {', '.join([*plain, *text])}; after {', '.join(text)}, also"
        f" {', '.join(COMPRESSED)}"
    )


__all__ = ["FORMATS", "Format", "InputRow", "SeekPoint", "format_of"]
