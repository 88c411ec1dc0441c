"""Files that are read up to a length."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.storage import user_error

MOST = 8 * 2**20


def check_length(path: Path, load: Callable[[], Any], *said: str) -> None:
    """A JSON file of the most bytes is read; one a MiB longer, as good but for that, is refused."""
    content = path.read_bytes()
    path.write_bytes(content.ljust(MOST))
    load()
    path.write_bytes(content.ljust(MOST + 2**20))
    with user_error(*said, f"it has {MOST + 2**20} bytes, more than {MOST}"):
        load()
