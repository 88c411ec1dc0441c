"""Read and create the markers of an output: which shards are committed, and which windows are finished.

    data/<shard>-<unique>.parquet   dead/<shard>-<unique>.parquet
    _commits/<shard>.json           _commits/window-<n>-<run>.json   _commits/window-<n>-<run>-<version>.json

A file counts only if a marker names it. `storage.commit.window` describes who writes which marker, and when.

Shards are named ``w<window>-<run>-<attempt>-<task>``. All names of a run hold its id, and a run neither sees nor
removes anything else: a writer or driver of a discarded run that comes late changes nothing. Commands that retry dead
letters put a ``<session>`` before the attempt, and see only shards of their own session.
"""

import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import orjson

from pipeline.errors import UserError
from pipeline.storage.store.objects import create, list_names, read
from pipeline.storage.store.redact import masked

from .counts import Counts, sum_counts
from .markers import (
    Shard,
    WindowFiles,
    decode_shard,
    decode_window,
    encode_shard,
    is_shard_marker,
    newest_markers,
    shard_prefix,
    window_of,
    without_repeated_rows,
)
from .output_files import KINDS, OutputFiles

_RUN = re.compile(r"[0-9a-z]{4,32}")
_READ_ATTEMPTS = 5  # of a reader that meets a window that is being finished at the same moment


@dataclass(frozen=True)
class MarkerStore(OutputFiles):
    """The markers of one output folder and ``run``, "" for any; `UserError` if ``run`` cannot be part of a name."""

    run: str = ""
    session: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run and not _RUN.fullmatch(self.run):
            raise UserError(f"run: run.json at {masked(self.url)} holds {self.run[:40]!r}, which is not a run id")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.url, self.run, self.session)

    def with_session(self) -> "MarkerStore":
        """The markers of a new session, whose shards no other session sees."""
        return replace(self, session=f"{uuid.uuid4().hex[:8]}-")

    def shard_prefix(self, window: int) -> str:
        """The start of the names of a window's shards: of the run, and of the session."""
        return shard_prefix(window, self.run) + self.session

    def create_shard(self, shard: Shard) -> Shard:
        """Create the marker of a shard; returns the committed shard: an earlier one if it has a marker already."""
        marker = f"_commits/{shard.name}.json"
        return shard if create(self.fs, self.path(marker), encode_shard(shard)) else decode_shard(self.content(marker))

    def find_shard(self, name: str) -> Shard | None:
        """The committed shard of that name, or None."""
        content = read(self.fs, self.path("_commits", f"{name}.json"))
        return None if content is None else decode_shard(content)

    def shards(self, window: int) -> Iterator[Shard]:
        """Committed shards of an unfinished window by name, read one by one."""
        found = self._names(self.shard_prefix(window))
        return self._read_shards(name for name in found if name.endswith(".json"))

    def counts(self, window: int) -> Counts:
        """Counts of an unfinished window so far, without shards that repeat rows."""
        return sum_counts(shard.counts for shard in without_repeated_rows(self.shards(window)))

    def windows_with_shards(self) -> set[int]:
        """Windows that have shard markers of this run and session."""
        return {window_of(name) for name in self._names() if is_shard_marker(name, self.run, self.session)}

    def has_markers(self) -> bool:
        """Whether there is any marker."""
        return any(name.endswith(".json") for name in self._names())

    def create_window(self, name: str, files: WindowFiles) -> bool:
        """Create a window marker; False if there is another one of that name."""
        return create(self.fs, self.path("_commits", name), orjson.dumps(files))

    def finished_markers(self) -> dict[int, str]:
        """The name of the newest window marker of each finished window; lists markers but reads none."""
        return newest_markers(self._names("window-"), self.run)

    def read_windows(self, markers: Iterable[str]) -> Iterator[WindowFiles]:
        """The files that each of the window markers names, read one by one."""
        return map(decode_window, self.contents(f"_commits/{name}" for name in markers))

    def referenced_files(self) -> set[str]:
        """Paths of all files of finished windows, as their markers give them."""
        windows = self.read_windows(self.finished_markers().values())
        return {path for files in windows for path in (*files.data, *files.dead)}

    def newest_marker(self, window: int) -> tuple[str, WindowFiles]:
        """The newest marker of a finished window, and the files that it names; `KeyError` if it is not finished."""
        name = newest_markers(self.window_markers(window), self.run)[window]
        return name, next(self.read_windows([name]))

    def window_markers(self, window: int) -> list[str]:
        """Names of a window's markers, in all versions."""
        return [name for name in self._names(f"window-{window:06d}") if newest_markers([name], self.run)]

    def list_window(self, window: int) -> list[str]:
        """Paths of a window's files and shard markers, those half written on a local disk too; markers last."""
        prefix = shard_prefix(window, self.run)
        return [
            f"{kind}/{name}"
            for kind in (*KINDS, "_commits")
            for start in (prefix, f".{prefix}")
            for name in list_names(self.fs, self.path(kind), start)
        ]

    def committed_files(self, kind: str) -> list[str]:
        """Paths of all ``data`` or ``dead`` files that a reader may open, of finished windows and of others."""
        for _ in range(_READ_ATTEMPTS):
            try:
                found = [self.path(name) for name in self._committed_files(kind)]
                self.fs.invalidate_cache(self.path(kind))  # listings from before these files were written
                return found
            except FileNotFoundError:  # a window was finished between the listing and the reading of its shards
                continue
        raise FileNotFoundError(f"{masked(self.url)}: markers were removed while they were read")

    def _committed_files(self, kind: str) -> list[str]:
        markers = [name for name in self._names() if name.endswith(".json")]
        finished = newest_markers(markers, self.run)
        found = [path for name in finished.values() for path in getattr(next(self.read_windows([name])), kind)]
        unfinished: dict[int, list[str]] = {}
        for name in markers:
            if is_shard_marker(name, self.run) and window_of(name) not in finished:
                unfinished.setdefault(window_of(name), []).append(name)
        for shard_markers in unfinished.values():
            shards = without_repeated_rows(self._read_shards(shard_markers))
            found += [path for shard in shards if (path := getattr(shard, kind))]
        return found

    def _read_shards(self, markers: Iterable[str]) -> Iterator[Shard]:
        return map(decode_shard, self.contents(f"_commits/{name}" for name in markers))

    def _names(self, prefix: str = "") -> list[str]:
        return list_names(self.fs, self.path("_commits"), prefix)
