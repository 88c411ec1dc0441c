"""Commit markers: their names, and the shards and windows that they describe as JSON."""

import base64
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import orjson

from .counts import Counts, sum_counts

_WINDOW_MARKER = re.compile(r"window-(\d{6})(?:-([0-9a-z]{4,32}))?(?:-(\d{3,}))?\.json")
_SHARD_MARKER = re.compile(r"w\d{6}-.*\.json")
_ROWS = ("data_rows", "dead_rows")

MAX_WINDOWS = 10**6  # a window's number has six digits in the names of objects

Rows = np.ndarray  # int64 [rows], row indices in the window


@dataclass(frozen=True)
class Shard:
    """A committed shard: its two files (or None), the rows that they hold in file order, and their counts."""

    name: str
    data: str | None
    dead: str | None
    data_rows: Rows
    dead_rows: Rows
    counts: Counts

    @property
    def rows(self) -> Rows:
        """All rows of the shard, answered or dead."""
        return np.concatenate([self.data_rows, self.dead_rows])


@dataclass(frozen=True)
class WindowFiles:
    """The files of a finished window, and their counts."""

    data: list[str]
    dead: list[str]
    counts: Counts


def merge_shards(shards: Iterable[Shard]) -> WindowFiles:
    """The files and counts of all shards together; the shards are read one by one."""
    data: list[str] = []
    dead: list[str] = []

    def counts() -> Iterator[Counts]:
        for shard in shards:
            data.extend([shard.data] if shard.data else [])
            dead.extend([shard.dead] if shard.dead else [])
            yield shard.counts

    return WindowFiles(data, dead, sum_counts(counts()))


class CommittedRows:
    """The rows of a window that are committed so far: one bit per row, because a window has thousands of shards."""

    def __init__(self) -> None:
        self._is_committed = np.zeros(0, bool)

    def add(self, shard: Shard) -> Rows:
        """Add a shard; returns its rows that no shard before it holds, sorted."""
        rows: Rows = np.unique(shard.rows)
        if len(rows) and rows[-1] >= len(self._is_committed):
            self._is_committed = np.append(self._is_committed, np.zeros(rows[-1] + 1, bool))
        rows = rows[~self._is_committed[rows]]
        self._is_committed[rows] = True
        return rows


def without_overlap(shards: Iterable[Shard]) -> Iterator[tuple[Shard, Rows]]:
    """Each shard with its rows that no earlier shard holds; a shard without any is left out."""
    committed = CommittedRows()
    for shard in shards:
        rows = committed.add(shard)
        if len(rows):
            yield shard, rows


def without_repeated_rows(shards: Iterable[Shard]) -> Iterator[Shard]:
    """The shards of which no row is in an earlier one; the others count once they are cut."""
    return (shard for shard, rows in without_overlap(shards) if len(rows) == len(shard.rows))


def newest_markers(names: Iterable[str], run: str = "") -> dict[int, str]:
    """The window marker of the highest version, by window, among the names of all markers. ``run``: "" for any run."""
    newest: dict[int, tuple[int, str]] = {}
    for name in names:
        match = _WINDOW_MARKER.fullmatch(name)
        if match and run in ("", match[2]):
            window, version = int(match[1]), int(match[3] or 0)
            newest[window] = max(newest.get(window, (-1, "")), (version, name))
    return {window: name for window, (_, name) in sorted(newest.items())}


def window_marker(window: int, run: str = "", version: int = 0) -> str:
    """The name of a window's marker: ``window-<n>-<run>.json``, or of a later version ``...-<version>.json``."""
    parts = ["window", f"{window:06d}", run, f"{version:03d}" if version else ""]
    return f"{'-'.join(filter(None, parts))}.json"


def next_marker(name: str) -> str:
    """The name of a window marker's next version."""
    match = _WINDOW_MARKER.fullmatch(name)
    assert match, name
    return window_marker(int(match[1]), match[2], int(match[3] or 0) + 1)


def shard_prefix(window: int, run: str = "") -> str:
    """The start of the names of a window's shards and of their files."""
    return f"w{window:06d}-{run}-" if run else f"w{window:06d}-"


def window_of(shard_name: str) -> int:
    """The window of a shard, from its name."""
    return int(shard_name[1:7])


def is_shard_marker(name: str, run: str = "", session: str = "") -> bool:
    """Whether a name is that of a shard marker of the run ("": of any run), and of a session of it."""
    return bool(_SHARD_MARKER.fullmatch(name)) and name.startswith(shard_prefix(window_of(name), run) + session)


def encode_shard(shard: Shard) -> bytes:
    """The content of a shard's marker."""
    return orjson.dumps(vars(shard) | {name: _encode_rows(getattr(shard, name)) for name in _ROWS})


def decode_shard(content: bytes) -> Shard:
    """Inverse of `encode_shard`."""
    values = orjson.loads(content)
    rows = {name: _decode_rows(values[name]) for name in _ROWS}
    return Shard(**values | rows | {"counts": Counts(**values["counts"])})


def decode_window(content: bytes) -> WindowFiles:
    """The `WindowFiles` that a window's marker holds as JSON."""
    values = orjson.loads(content)
    return WindowFiles(**values | {"counts": Counts(**values["counts"])})


def _encode_rows(rows: Rows) -> str:
    return base64.b64encode(zlib.compress(rows.astype("<u4").tobytes())).decode()


def _decode_rows(text: str) -> Rows:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").astype(np.int64)
