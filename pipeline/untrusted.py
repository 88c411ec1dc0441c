"""Check files from untrusted sources (adapters, routers) before a library opens them."""

import json
import struct
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 8 * 2**20  # a PEFT config has a few kilobytes
MAX_HEADER_BYTES = 16 * 2**20  # about 100,000 tensors; safetensors itself accepts 100 MB


def read_json(path: Path) -> Any:
    """Read the value in a JSON file; raises `ValueError` or `OSError`, and no other error, if it cannot be read."""
    _check_regular(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"it has {path.stat().st_size} bytes, more than {MAX_JSON_BYTES}")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("its values are nested too deep") from None


def check_tensor_file(path: Path, max_bytes: int | None = None) -> None:
    """Raise `ValueError` or `OSError` if a file cannot be safetensors, or its header would fill the memory.

    ``max_bytes``: limit of the file's size. The safetensors library itself checks the header's offsets and sizes, and
    that tensors neither overlap nor leave gaps.
    """
    _check_regular(path)
    with path.open("rb") as f:
        start = f.read(8)
    if len(start) < 8:
        raise ValueError("it has no header")
    if max_bytes is not None and path.stat().st_size > max_bytes:
        raise ValueError(f"it has {path.stat().st_size} bytes, more than {max_bytes}")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER_BYTES or length > path.stat().st_size - 8:
        raise ValueError(f"its header would have {length} bytes, the file has {path.stat().st_size}")


def short_repr(value: object) -> str:
    """The `repr` of a value for a message, cut after 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def printable_name(name: str) -> str:
    """A name for a message: unchanged if it is short and printable, else its `short_repr`."""
    return name if name.isprintable() and len(name) <= 100 else short_repr(name)


def _check_regular(path: Path) -> None:
    """Follow links, because model caches use them, but refuse a pipe or device: reading it might never end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
