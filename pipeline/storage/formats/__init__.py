"""Input formats. A format is one file with a `Format`, and an entry in `FORMATS`."""

from ...errors import UserError
from ..files import named
from ..secrets import masked
from .base import Format, Row, SeekPoint
from .csv import Csv
from .jsonl import Jsonl
from .parquet import Parquet

FORMATS: dict[str, Format] = {
    ".jsonl": Jsonl(),
    ".jsonl.gz": Jsonl(),
    ".parquet": Parquet(),
    ".csv": Csv(),
    ".csv.gz": Csv(),
}


def format_of(path: str) -> Format:
    """The format of a file, by the end of its name."""
    for suffix, found in FORMATS.items():
        if named(path).endswith(suffix):
            return found
    raise UserError(f"input: {masked(path)} is none of {', '.join(FORMATS)}")


__all__ = ["FORMATS", "Format", "Row", "SeekPoint", "format_of"]
