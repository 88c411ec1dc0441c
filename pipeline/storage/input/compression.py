"""Open text files that may be compressed: the end of a name tells how, and fsspec or pyarrow unpack them."""

import io
from typing import Any

import fsspec
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked

from .files import name_without_query

_BY_FSSPEC = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz"}
_BY_PYARROW = {".zst": "zstd", ".lz4": "lz4"}  # fsspec would need packages for them
COMPRESSED = (*_BY_FSSPEC, *_BY_PYARROW)
"""The ends of the names of compressed files."""

# A file that unpacks to more than both limits is refused: text compresses to a third or a tenth of its size, the same
# line repeated to a hundredth.
_BOMB_BYTES, _BOMB_RATIO = 2**30, 300


def split_name(path: str) -> tuple[str, str]:
    """A path in lower case without the suffix of its compression, and this suffix, which may be empty."""
    name = name_without_query(path)
    suffix = next((suffix for suffix in COMPRESSED if name.endswith(suffix)), "")
    return name.removesuffix(suffix), suffix


def open_text(fs: fsspec.AbstractFileSystem, path: str) -> io.BufferedReader:
    """Open a file to read lines, decompressed as the end of its name says, with a buffer of 1 MiB."""
    _, suffix = split_name(path)
    size = fs.size(path) if suffix else None
    if not suffix or size == 0:  # without any content it holds no record, as a plain file
        return io.BufferedReader(fs.open(path, "rb"), 2**20)
    if suffix in _BY_FSSPEC:
        opened = fs.open(path, "rb", compression=_BY_FSSPEC[suffix])
    else:
        opened = pa.CompressedInputStream(pa.PythonFile(fs.open(path, "rb"), "r"), _BY_PYARROW[suffix])
    return io.BufferedReader(_Bounded(opened, path, size or 0), 2**20)


class _Bounded(io.RawIOBase):
    """The content of a compressed file; raises `UserError` beyond the limits of its unpacked size."""

    def __init__(self, opened: Any, path: str, size: int) -> None:
        self._opened, self._path = opened, path
        self._left = max(_BOMB_BYTES, _BOMB_RATIO * size)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to the buffer's size."""
        content = self._opened.read(len(buffer))
        buffer[: len(content)] = content
        self._left -= len(content)
        if self._left < 0:
            raise UserError(
                f"input: {masked(self._path)} unpacks to more than {_BOMB_RATIO} times its size; if that is"
                " intended, unpack it first"
            )
        return len(content)

    def close(self) -> None:
        """Close the underlying file too."""
        self._opened.close()
        super().close()
