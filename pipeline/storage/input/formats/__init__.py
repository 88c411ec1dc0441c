"""Input formats. A format is one file with a `Format`, and an entry in `FORMATS`."""

from pipeline.errors import UserError
from pipeline.storage.input.files import named
from pipeline.storage.store.redact import masked

from .arrow import Arrow
from .base import Format, InputRow, Layout, SeekPoint
from .csv import Csv
from .jsonl import Jsonl
from .openai_batch import OpenAiBatch
from .parquet import Parquet

FORMATS: dict[str, Format] = {
    ".jsonl": Jsonl(),
    ".jsonl.gz": Jsonl(),
    ".parquet": Parquet(),
    ".csv": Csv(),
    ".csv.gz": Csv(),
    ".arrow": Arrow(),
}
_REQUESTS = OpenAiBatch()


def format_of(path: str, layout: Layout = "columns") -> Format:
    """The format of a file, by the end of its name; ``layout``: what its rows look like."""
    if layout == "openai_batch":
        if named(path).endswith((".jsonl", ".jsonl.gz")):
            return _REQUESTS
        raise UserError(
            f"input: {masked(path)} is no .jsonl or .jsonl.gz, as files of batch requests are (input.layout)"
        )
    for suffix, found in FORMATS.items():
        if named(path).endswith(suffix):
            return found
    raise UserError(f"input: {masked(path)} is none of {', '.join(FORMATS)}")


__all__ = ["FORMATS", "Format", "InputRow", "Layout", "SeekPoint", "format_of"]
