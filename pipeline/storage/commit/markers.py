"""What markers say: shards and windows, with their counts; written as JSON."""

import base64
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import orjson

from .counts import Counts, total

_WINDOW_MARKER = re.compile(r"window-(\d{6})(?:-([0-9a-z]{4,32}))?(?:-(\d{3,}))?\.json")

MOST_WINDOWS = 10**6  # their numbers have six digits in the names of objects

Rows = np.ndarray  # int64, places in the window


@dataclass(frozen=True)
class Shard:
    """What a shard marker says: two files (or None), the rows they answer in file order, and their counts."""

    name: str
    data: str | None
    dead: str | None
    data_rows: Rows
    dead_rows: Rows
    counts: Counts

    @property
    def rows(self) -> Rows:
        """All rows answered by the shard."""
        return np.concatenate([self.data_rows, self.dead_rows])


@dataclass(frozen=True)
class WindowFiles:
    """What a window marker says: the files of a finished window and their counts."""

    data: list[str]
    dead: list[str]
    counts: Counts


def files_of(shards: Iterable[Shard]) -> WindowFiles:
    """What a window marker says of some shards."""
    data: list[str] = []
    dead: list[str] = []

    def all_counts() -> Iterator[Counts]:
        for shard in shards:
            data.extend([shard.data] if shard.data else [])
            dead.extend([shard.dead] if shard.dead else [])
            yield shard.counts

    return WindowFiles(data, dead, total(all_counts()))


class Answered:
    """Rows of a window that a shard was seen to answer, by place: a window has thousands of shards."""

    def __init__(self) -> None:
        self._seen = np.zeros(0, bool)

    def add(self, shard: Shard) -> Rows:
        """Those of the shard's rows that none before it answers."""
        rows: Rows = np.unique(shard.rows)
        if len(rows) and rows[-1] >= len(self._seen):
            self._seen = np.append(self._seen, np.zeros(rows[-1] + 1, bool))
        rows = rows[~self._seen[rows]]
        self._seen[rows] = True
        return rows


def without_overlap(shards: Iterable[Shard]) -> Iterator[tuple[Shard, Rows]]:
    """Each shard with those of its rows that no earlier shard answers; shards with none are left out."""
    answered = Answered()
    for shard in shards:
        rows = answered.add(shard)
        if len(rows):
            yield shard, rows


def window_markers(found: Iterable[str], run: str | None = None) -> dict[int, str]:
    """The newest marker of each window, among the names of all markers: of the highest version.

    ``run``: of this run alone; None: of any.
    """
    newest: dict[int, tuple[int, str]] = {}
    for name in found:
        match = _WINDOW_MARKER.fullmatch(name)
        if match and run in (None, match[2]):
            window, version = int(match[1]), int(match[3] or 0)
            newest[window] = max(newest.get(window, (-1, "")), (version, name))
    return {window: name for window, (_, name) in sorted(newest.items())}


def window_marker(window: int, run: str | None = None, version: int = 0) -> str:
    """The name of a window's marker: ``window-<n>-<run>.json``, or of a later version ``...-<version>.json``."""
    parts = [f"{window:06d}", *([run] if run else []), *([f"{version:03d}"] if version else [])]
    return f"window-{'-'.join(parts)}.json"


def next_marker(name: str) -> str:
    """The name of the marker that takes the place of one."""
    match = _WINDOW_MARKER.fullmatch(name)
    assert match, name
    return window_marker(int(match[1]), match[2], int(match[3] or 0) + 1)


def shard_prefix(window: int, run: str | None = None) -> str:
    """What the names of a window's shards start with, and those of their files."""
    return f"w{window:06d}-{run}-" if run else f"w{window:06d}-"


def window_of(shard_name: str) -> int:
    """The window of a shard, from its name."""
    return int(shard_name[1:7])


def encode(shard: Shard) -> bytes:
    """The marker of a shard, as JSON."""
    return orjson.dumps(
        {
            "data": shard.data,
            "dead": shard.dead,
            "data_rows": _packed(shard.data_rows),
            "dead_rows": _packed(shard.dead_rows),
            "counts": asdict(shard.counts),
        }
    )


def decode(name: str, content: bytes) -> Shard:
    """The shard of that name from its marker."""
    values = orjson.loads(content)
    return Shard(
        name,
        values["data"],
        values["dead"],
        _unpacked(values["data_rows"]),
        _unpacked(values["dead_rows"]),
        Counts(**values["counts"]),
    )


def _packed(rows: Rows) -> str:
    return base64.b64encode(zlib.compress(rows.astype("<u4").tobytes())).decode()


def _unpacked(text: str) -> Rows:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").astype(np.int64)
