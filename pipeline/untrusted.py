"""Check files from untrusted sources (adapters, routers) before a library opens them."""

import codecs
import json
import struct
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 8 * 2**20  # a PEFT config has a few kilobytes
MAX_HEADER_BYTES = 16 * 2**20  # about 100,000 tensors; safetensors itself accepts 100 MB
_START = 64  # bytes that tell what a file is
_PAGE = "a web page or the error of a store; download the file itself"
# What a download may give in the place of any file.
_STAND_INS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run git lfs pull where it was cloned",
    **dict.fromkeys((b"<!doc", b"<html", b"<?xml", b"<error"), _PAGE),
}
# In the place of JSON or safetensors.
_OTHERS = {
    b"pk\x03\x04": "a zip or a pickle of torch.save, which is not read; save it as safetensors",
    b"\x80": "a pickle, which is not read since it can run code; save it as safetensors",
    b"\x1f\x8b": "compressed with gzip; unpack it",
}


def stand_in(content: bytes) -> str:
    """Say what was downloaded in the place of a file, and what to do; empty if nothing was."""
    return _first(content, _STAND_INS)


def appearance(content: bytes) -> str:
    """Say what a file named JSON or safetensors seems to be instead, and what to do; empty if that is unknown."""
    found = _first(content, _STAND_INS | _OTHERS)
    return f"it is {found}" if found else ""


def _first(content: bytes, known: dict[bytes, str]) -> str:
    start = content.removeprefix(codecs.BOM_UTF8).lstrip()[:_START]
    return next((what for first, what in known.items() if start.lower().startswith(first)), "")


def read_json(path: Path) -> Any:
    """Read the value in a JSON file; raises `ValueError` or `OSError`, and no other error, if it cannot be read."""
    _check_regular(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"it has {path.stat().st_size} bytes, more than {MAX_JSON_BYTES}")
    content = path.read_bytes()
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("its values are nested too deep") from None
    except ValueError as error:
        raise ValueError(appearance(content) or str(error)) from None


def check_tensor_file(path: Path, max_bytes: int | None = None) -> None:
    """Raise `ValueError` or `OSError` if a file cannot be safetensors, or its header would fill the memory.

    ``max_bytes``: limit of the file's size. The safetensors library itself checks the header's offsets and sizes, and
    that tensors neither overlap nor leave gaps.
    """
    _check_regular(path)
    with path.open("rb") as f:
        start = f.read(_START)
    size = path.stat().st_size
    if len(start) < 8:
        raise ValueError(f"it has {size} bytes and no header; copy it again")
    if start[8:9] not in (b"{", b""):  # the first byte of every header
        raise ValueError(appearance(start) or "it has no header of safetensors; copy it again")
    if max_bytes is not None and size > max_bytes:
        raise ValueError(f"it has {size} bytes, more than {max_bytes}")
    (length,) = struct.unpack("<Q", start[:8])
    if length > MAX_HEADER_BYTES or length > size - 8:
        raise ValueError(f"its header would have {length} bytes, the file has {size}; copy it again")


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
