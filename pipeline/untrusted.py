"""Files that may come from anyone, adapters and routers: what is looked at before a library opens them."""

import json
import struct
from pathlib import Path
from typing import Any

MAX_JSON = 8 * 2**20  # bytes of a config: PEFT's have some kilobytes
MAX_HEADER = 16 * 2**20  # bytes of a safetensors header, about 100,000 tensors; the library itself takes 100 MB


def read_json(path: Path) -> Any:
    """The value in a JSON file; `ValueError` or `OSError` where it cannot be read, whatever is in it."""
    _check_regular(path)
    if path.stat().st_size > MAX_JSON:
        raise ValueError(f"it has {path.stat().st_size} bytes, more than {MAX_JSON}")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("its values are nested too deep") from None


def check_tensor_file(path: Path, largest: int | None = None) -> None:
    """`ValueError` or `OSError` where a file cannot be safetensors, or has a header that would fill the memory.

    ``largest``: bytes that the whole file may have.

    The library checks what the header says: offsets, sizes and that nothing overlaps or is left out.
    """
    _check_regular(path)
    with path.open("rb") as f:
        start = f.read(8)
    if len(start) < 8:
        raise ValueError("it has no header")
    if largest is not None and path.stat().st_size > largest:
        raise ValueError(f"it has {path.stat().st_size} bytes, more than {largest}")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER or length > path.stat().st_size - 8:
        raise ValueError(f"its header would have {length} bytes, the file has {path.stat().st_size}")


def shown(value: object) -> str:
    """A value of such a file in a message: on one line, at most 100 characters of it."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def one_line(error: BaseException) -> str:
    """What a library said of such a file, on one line, at most 300 characters of it."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _check_regular(path: Path) -> None:
    """Links are followed, as caches of models hold them; a pipe or device behind one would never end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
