"""Copy tensor files without their values: files of full size, sparse, that hold only what `file_sample` names."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.asyn import AsyncFileSystem

from pipeline.errors import UserError
from pipeline.file_sample import PREFIX, TENSORS, WHOLE, sample_ranges

from .redact import masked_path

# Formats of weights; of those that are no safetensors nothing is read, and a copy only has their names and sizes.
_WEIGHTS = {TENSORS, ".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".onnx_data", ".pt", ".pth"}
_FILES = 8  # whose samples are in memory together, 4 MiB each and a header


def large_weights(sizes: Mapping[str, int]) -> list[str]:
    """Return the files of weights above 4 MiB, sorted: those to copy without their values. ``sizes``: in bytes."""
    return sorted(path for path, size in sizes.items() if size > WHOLE and PurePosixPath(path).suffix in _WEIGHTS)


def answers_ranges(fs: Any, path: str) -> bool:
    """Whether a store gives a part of a file when asked for it; web servers may ignore that.

    False for all but S3, Google Cloud Storage, Azure and the web: other file systems of fsspec read from the start of a
    file, or in blocks larger than a sample's.
    """
    if not isinstance(fs, AsyncFileSystem):
        return False
    try:
        # One byte: fsspec finds out, without reading on, that an answer is the whole file.
        with fs.open(path, cache_type="none") as f:
            f.seek(1)
            return len(f.read(1)) == 1
    except ValueError:
        return False


def copy_headers(fs: AsyncFileSystem, sizes: Mapping[str, int], copies: Mapping[str, Path]) -> None:
    """Write a sparse file for each file of weights. ``sizes``, ``copies``: by path in the store."""
    for first in range(0, len(copies), _FILES):
        paths = list(copies)[first : first + _FILES]
        tensors = [path for path in paths if copies[path].suffix == TENSORS]
        prefixes = dict(zip(tensors, _read(fs, [(path, 0, PREFIX) for path in tensors]), strict=True))
        wanted = [(path, *part) for path in tensors for part in sample_ranges(sizes[path], prefixes[path])]
        for path in paths:
            with copies[path].open("wb") as f:
                f.truncate(sizes[path])
        for (path, start, _), content in zip(wanted, _read(fs, wanted), strict=True):
            with copies[path].open("r+b") as f:
                f.seek(start)
                f.write(content)


def _read(fs: AsyncFileSystem, parts: list[tuple[str, int, int]]) -> list[bytes]:
    """Read (path, start, end) of files, in concurrent requests."""
    paths, starts, ends = map(list, zip(*parts, strict=True)) if parts else ([], [], [])
    found: list[bytes] = fs.cat_ranges(paths, starts, ends, on_error="raise")
    for (path, start, end), content in zip(parts, found, strict=True):
        if len(content) != end - start:
            raise UserError(
                f"url: the store gave {len(content)} bytes of {masked_path(path)} where {end - start} were asked for;"
                " was the file replaced meanwhile?"
            )
    return found
