"""The commit protocol: data object, dead object, then the marker; a reader trusts markers only.

Each write task makes at most one data and one dead file, then one *shard marker* that names them and the rows (places
in the window) they answer. When every row of a window is answered, one *window marker* lists all its files; from then
on shard markers of that window mean nothing, so that a writer that comes late (of a driver that was killed) changes
nothing. Rows answered by two shard markers are cut out of the second one's files before a window is closed. Last, what
the window marker does not name is swept: files first, shard markers after them.

    data/<shard>-<try>.parquet   dead/<shard>-<try>.parquet   _commits/<shard>.json   _commits/window-<n>-<run>.json

Dead letters that are tried again later (`retry`) give a window a new marker, ``window-<n>-<run>-<version>.json``, that
takes the place of the one before: of that which was there when the window was begun, and of no other. Before what was
committed late is swept from a finished window, the window gets its marker again as the next version (`fence`), so that
a driver that slept over a takeover cannot give it one that names what was swept.

A shard is named ``w<window>-<run>-<attempt>-<task>``: a task that is tried again finds its marker, or writes it again.
Markers are created once: of two writers of one marker the second takes what the first wrote. Commands that try dead
letters again have a ``<session>`` before the attempt, and see no shards but their own.

All that a run writes has its id in its name, and it sees and sweeps nothing else: what a writer or a driver of a run
that was discarded does late changes nothing. What is swept is listed before the marker is written, so that a driver
that slept in between removes nothing that others wrote since.
"""

import re
import uuid
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from pipeline.errors import UserError
from pipeline.storage.store.bulk import remove_each
from pipeline.storage.store.objects import StoreError, create, names, read, refusals
from pipeline.storage.store.redact import masked

from .counts import Counts, count_rows, total
from .markers import (
    Rows,
    Shard,
    WindowFiles,
    decode,
    encode,
    files_of,
    next_marker,
    shard_prefix,
    window_marker,
    window_markers,
    window_of,
    without_overlap,
)
from .output_files import OutputFiles

KINDS = ("data", "dead")
_SHARD_MARKER = re.compile(r"w\d{6}-.*\.json")
_RUN = re.compile(r"[0-9a-z]{4,32}")
_READ_AGAIN = 5  # a reader that meets a window that is just being finished starts anew


class CommitLog(OutputFiles):
    """Markers and files of one output folder. ``run``: the id of its run; None: what any run made."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._run: str | None = None
        self._session = ""

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"run": self.run, "session": self._session}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._run, self._session = state["run"], state["session"]

    @property
    def run(self) -> str | None:
        """The run whose markers and files these are."""
        return self._run

    @run.setter
    def run(self, run: str | None) -> None:
        if run and not _RUN.fullmatch(run):  # it becomes part of names
            raise UserError(f"run: {masked(self.url)} says that it is of the run {run[:40]!r}, which is no run's id")
        self._run = run or None

    def begin_session(self) -> None:
        """From now on commit shards that this log alone sees, and those it is sent to."""
        self._session = f"{uuid.uuid4().hex[:8]}-"

    def prefix(self, window: int) -> str:
        """What the names of a window's shards start with: of the run, and of the session."""
        return shard_prefix(window, self.run) + self._session

    @refusals()
    def commit(self, shard: Shard, data: pa.Table, dead: pa.Table) -> Shard:
        """Write the files of a shard that have rows, then its marker. A shard that has its marker is left as it is.

        `StoreError` where the store refuses them for good.
        """
        marker = self.path("_commits", f"{shard.name}.json")
        there = read(self.fs, marker)
        if there is not None:
            return decode(shard.name, there)
        shard = replace(
            shard,
            data=self.write_table("data", shard.name, data),
            dead=self.write_table("dead", shard.name, dead),
        )
        if create(self.fs, marker, encode(shard)):
            return shard
        return decode(shard.name, self._marker(f"{shard.name}.json"))

    def shards(self, window: int, without: Container[str] = ()) -> Iterator[Shard]:
        """Committed shards of an unfinished window, in the order of their names, but for those named in ``without``.

        Each is read when it is asked for: a window has thousands, with places of a million rows.
        """
        found = names(self.fs, self.path("_commits"), self.prefix(window))
        return self._shards(n for n in found if n.endswith(".json") and n.removesuffix(".json") not in without)

    def has_markers(self) -> bool:
        """Whether any marker is there."""
        return any(name.endswith(".json") for name in names(self.fs, self.path("_commits")))

    def counts(self, window: int) -> Counts:
        """Counts of an unfinished window so far. Shards with rows that are answered before are left out, until they
        are cut.
        """
        return total(s.counts for s, rows in without_overlap(self.shards(window)) if len(rows) == len(s.rows))

    def finished(self) -> dict[int, str]:
        """Names of the newest window markers, by window: of a listing alone."""
        return window_markers(names(self.fs, self.path("_commits"), "window-"), self.run)

    def marked(self, markers: Iterable[str]) -> Iterator[WindowFiles]:
        """What window markers say, each read when it is asked for."""
        return map(_window_files, self.contents(f"_commits/{name}" for name in markers))

    def finished_windows(self) -> dict[int, WindowFiles]:
        """What the newest window markers say, by window."""
        found = self.finished()
        return dict(zip(found, self.marked(found.values()), strict=True))

    def named(self) -> set[str]:
        """Paths of all files of finished windows, as their markers give them."""
        return {path for files in self.marked(self.finished().values()) for path in (*files.data, *files.dead)}

    def newest(self, window: int) -> tuple[str, WindowFiles]:
        """The newest marker of a finished window, and what it says; `KeyError` where it has none."""
        name = window_markers(self._window_markers(window), self.run)[window]
        return name, self._window(name)

    @refusals()
    def finish_window(
        self, window: int, rows: int, join: Callable[[WindowFiles], WindowFiles] = lambda files: files
    ) -> WindowFiles:
        """Write the window marker over the window's shards, rows answered twice kept once; sweep the rest.

        Where the shards listed do not answer all of its ``rows``, no marker is written: another driver finished the
        window a moment ago, or (`FileNotFoundError`) the store lists less than there is. ``join`` may put other files
        of the same rows in the place of the shards' files.
        """
        name = window_marker(window, self.run)
        files = files_of(self.cut_shards(window))
        if files.counts.data + files.counts.dead == rows:
            files = join(files)
            there = self._of_window(window)
            self._create(name, files)  # else another driver did
            return self._sweep(window, there)
        return self.sweep(window)

    @refusals()
    def replace_window(self, window: int, before: str, files: WindowFiles) -> WindowFiles:
        """Write a marker that takes the place of ``before``, and sweep what that named alone.

        `StoreError` where another one has its place by now: ``files`` then mean nothing.
        """
        there = self._of_window(window)
        if not self._create(next_marker(before), files):
            raise StoreError(f"window {window + 1} was given other files meanwhile, by another command")
        return self._sweep(window, there)

    def fence(self, window: int) -> None:
        """Give a finished window its newest marker again, as the next version: `replace_window` of a driver that began
        before, and was taken over meanwhile, is refused.
        """
        name, files = self.newest(window)
        self._create(next_marker(name), files)  # else another one did so a moment ago

    def cut_shards(self, window: int) -> Iterator[Shard]:
        """The shards of a window, each with only those of its rows that none before it answers."""
        return (self._cut(shard, rows) for shard, rows in without_overlap(self.shards(window)))

    def _create(self, name: str, files: WindowFiles) -> bool:
        return create(self.fs, self.path("_commits", name), orjson.dumps(asdict(files)))

    def sweep(self, window: int) -> WindowFiles:
        """Remove what a finished window left behind: files that its newest marker does not name, its shard markers and
        older window markers. `FileNotFoundError` where the window has no marker.
        """
        return self._sweep(window, self._of_window(window))

    def _sweep(self, window: int, there: Sequence[str]) -> WindowFiles:
        """Sweep those of a window's objects that were ``there``; what its newest marker says.

        Its shard markers go last: as long as there is one, `sweep_finished` looks at the window again.
        """
        markers = self._window_markers(window)
        newest = window_markers(markers, self.run).get(window, window_marker(window, self.run))
        files = self._window(newest)
        named = {*files.data, *files.dead}
        older = [f"_commits/{name}" for name in sorted(set(markers) - {newest})]
        left = [self.path(path) for path in (*older, *there) if path not in named]
        markers_folder = self.path("_commits", "")
        remove_each(self.fs, (path for path in left if not path.startswith(markers_folder)))
        remove_each(self.fs, (path for path in left if path.startswith(markers_folder)))
        return files

    def sweep_finished(self, fence: bool = False) -> int:
        """Sweep finished windows that a driver left unswept, or to which a writer came late; returns how many.

        ``fence``: what came late may be of a driver that tried dead letters again.
        """
        found = names(self.fs, self.path("_commits"))
        late = {window_of(name) for name in found if self._is_shard_marker(name)}
        finished = window_markers(found, self.run)
        for window in sorted(late & finished.keys()):
            if fence:
                self.fence(window)
            self.sweep(window)
        return len(late & finished.keys())

    def committed_files(self, kind: str) -> list[str]:
        """Paths of all committed ``data`` or ``dead`` files."""
        for _ in range(_READ_AGAIN):
            try:
                found = [self.path(name) for name in self._committed(kind)]
                self.fs.invalidate_cache(self.path(kind))  # listings from before these files were written
                return found
            except FileNotFoundError:  # a window was finished between the listing and the reading of its shards
                continue
        raise FileNotFoundError(f"{masked(self.url)}: markers vanish as they are read")

    def _committed(self, kind: str) -> list[str]:
        markers = [name for name in names(self.fs, self.path("_commits")) if name.endswith(".json")]
        finished = window_markers(markers, self.run)
        found = [name for marker in finished.values() for name in getattr(self._window(marker), kind)]
        by_window: dict[int, list[str]] = {}
        for name in markers:
            if self._is_shard_marker(name) and window_of(name) not in finished:
                by_window.setdefault(window_of(name), []).append(name)
        for shard_markers in by_window.values():
            # A shard with rows answered before is shown once the window is finished, and its files are cut.
            shown = (s for s, rows in without_overlap(self._shards(shard_markers)) if len(rows) == len(s.rows))
            found += [name for s in shown if (name := getattr(s, kind))]
        return found

    def is_own_marker(self, name: str) -> bool:
        """Whether a marker of that name is of the run."""
        return self._is_shard_marker(name) or bool(window_markers([name], self.run))

    def _is_shard_marker(self, name: str) -> bool:
        return bool(_SHARD_MARKER.fullmatch(name)) and name.startswith(shard_prefix(window_of(name), self.run))

    def _window_markers(self, window: int) -> list[str]:
        """Names of the window markers of all versions."""
        found = names(self.fs, self.path("_commits"), f"window-{window:06d}")
        return [name for name in found if window_markers([name], self.run)]

    def _shards(self, markers: Iterable[str]) -> Iterator[Shard]:
        listed = list(markers)
        contents = self.contents(f"_commits/{name}" for name in listed)
        return (decode(name.removesuffix(".json"), content) for name, content in zip(listed, contents, strict=True))

    def _of_window(self, window: int) -> list[str]:
        """Paths of a window's files and shard markers, those half written on a local disk too; markers last."""
        prefix = shard_prefix(window, self.run)
        return [
            f"{kind}/{name}"
            for kind in (*KINDS, "_commits")
            for start in (prefix, f".{prefix}")
            for name in names(self.fs, self.path(kind), start)
        ]

    def _cut(self, shard: Shard, keep: Rows) -> Shard:
        """The shard with only the rows ``keep``: itself, or a rewritten copy under another name."""
        if len(keep) == len(shard.rows):
            return shard
        tables = {kind: self._kept_rows(shard, kind, keep) for kind in KINDS}
        name = f"{shard.name}-cut"
        return replace(
            shard,
            data=self.write_table("data", name, tables["data"]),
            dead=self.write_table("dead", name, tables["dead"]),
            data_rows=shard.data_rows[np.isin(shard.data_rows, keep)],
            dead_rows=shard.dead_rows[np.isin(shard.dead_rows, keep)],
            counts=count_rows(tables["data"], tables["dead"]),
        )

    def _kept_rows(self, shard: Shard, kind: str, keep: Rows) -> pa.Table:
        path, rows = (shard.data, shard.data_rows) if kind == "data" else (shard.dead, shard.dead_rows)
        if path is None:
            return pa.table({})
        return self.read_table(path).filter(pa.array(np.isin(rows, keep)))

    def _window(self, name: str) -> WindowFiles:
        return _window_files(self._marker(name))

    def _marker(self, name: str) -> bytes:
        return self.content(f"_commits/{name}")


def _window_files(content: bytes) -> WindowFiles:
    values = orjson.loads(content)
    return WindowFiles(values["data"], values["dead"], Counts(**values["counts"]))
