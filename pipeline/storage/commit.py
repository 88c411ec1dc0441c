"""The commit protocol: data object, dead object, then the marker; a reader trusts markers only.

Each write task makes at most one data and one dead file, then one *shard marker* that names them and the rows (places
in the window) they answer. When every row of a window is answered, one *window marker* lists all its files; from then
on shard markers of that window mean nothing, so that a writer that comes late (of a driver that was killed) changes
nothing. Rows answered by two shard markers are cut out of the second one's files before a window is closed.

    data/<shard>-<try>.parquet   dead/<shard>-<try>.parquet   _commits/<shard>.json   _commits/window-<n>.json

A shard is named ``w<window>-<run attempt>-<task>``: a task that is tried again finds its marker, or writes it again.
"""

import base64
import io
import re
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import fsspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from .files import names, open_url, put

_FILES = (("data", r"w\d{6}-.*\.parquet"), ("dead", r"w\d{6}-.*\.parquet"))

Rows = np.ndarray  # int64, places in the window


@dataclass(frozen=True)
class Tally:
    """Counts of committed rows, added up over markers."""

    data: int = 0
    dead: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fallback: int = 0
    mixtures: dict[str, int] = field(default_factory=dict)
    finish_reasons: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(_added(a, b) for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Shard:
    """What a shard marker says: two files (or None), the rows they answer in file order, and their counts."""

    name: str
    data: str | None
    dead: str | None
    data_rows: Rows
    dead_rows: Rows
    tally: Tally

    @property
    def rows(self) -> Rows:
        """All rows answered by the shard."""
        return np.concatenate([self.data_rows, self.dead_rows])


@dataclass(frozen=True)
class WindowFiles:
    """What a window marker says: the files of a finished window and their counts."""

    data: list[str]
    dead: list[str]
    tally: Tally


class CommitLog:
    """Markers and files of one output folder."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._connect()

    def _connect(self) -> None:
        self.fs: fsspec.AbstractFileSystem
        self.fs, root = open_url(self.url)
        self.root = root.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.url = state["url"]
        self._connect()

    def commit(self, shard: Shard, data: pa.Table, dead: pa.Table) -> Shard:
        """Write the files of a shard that have rows, then its marker. A shard that has its marker is left as it is."""
        marker = self._path("_commits", f"{shard.name}.json")
        if self.fs.exists(marker):
            return _decoded(shard.name, self.fs.cat_file(marker))
        shard = replace(
            shard,
            data=self._write_table("data", shard.name, data),
            dead=self._write_table("dead", shard.name, dead),
        )
        put(self.fs, marker, _encoded(shard))
        return shard

    def shards(self, window: int) -> list[Shard]:
        """Committed shards of an unfinished window, in the order of their names."""
        prefix = shard_prefix(window)
        found = [n for n in names(self.fs, self._path("_commits")) if n.startswith(prefix) and n.endswith(".json")]
        return [_decoded(n.removesuffix(".json"), self.fs.cat_file(self._path("_commits", n))) for n in found]

    def has_markers(self) -> bool:
        """Whether any marker is there."""
        return any(name.endswith(".json") for name in names(self.fs, self._path("_commits")))

    def discard(self) -> None:
        """Remove all markers, then the files that shards wrote; files of other names stay."""
        for kind, pattern in (("_commits", r"(w\d{6}-|window-).*\.json"), *_FILES):
            folder = self._path(kind)
            found = names(self.fs, folder)
            for name in found:
                if re.fullmatch(pattern, name):
                    self.fs.rm_file(f"{folder}/{name}")

    def finished_windows(self) -> dict[int, WindowFiles]:
        """Window markers, by window."""
        found = [n for n in names(self.fs, self._path("_commits")) if n.startswith("window-") and n.endswith(".json")]
        return {int(n[7:-5]): self._window(n) for n in found}

    def finish_window(self, window: int) -> WindowFiles:
        """Write the window marker over the window's shards; rows answered twice are kept once."""
        shards = [self._cut(shard, rows) for shard, rows in without_overlap(self.shards(window))]
        files = WindowFiles(
            data=[s.data for s in shards if s.data],
            dead=[s.dead for s in shards if s.dead],
            tally=sum((s.tally for s in shards), Tally()),
        )
        put(self.fs, self._path("_commits", f"window-{window:06d}.json"), orjson.dumps(asdict(files)))
        return files

    def committed_files(self, kind: str) -> list[str]:
        """Paths of all committed ``data`` or ``dead`` files."""
        windows = self.finished_windows()
        found = [name for w in windows.values() for name in getattr(w, kind)]
        open_windows = {
            window_of(n) for n in names(self.fs, self._path("_commits")) if n[:1] == "w" and n[1:2].isdigit()
        } - set(windows)
        for window in sorted(open_windows):
            # A shard with rows answered before is shown once the window is finished, and its files are cut.
            found += [getattr(s, kind) for s, rows in without_overlap(self.shards(window)) if len(rows) == len(s.rows)]
        return [self._path(name) for name in found if name]

    def _cut(self, shard: Shard, keep: Rows) -> Shard:
        """The shard with only the rows ``keep``: itself, or a rewritten copy under another name."""
        if len(keep) == len(shard.rows):
            return shard
        tables = {kind: self._kept_rows(shard, kind, keep) for kind in ("data", "dead")}
        name = f"{shard.name}-cut"
        return replace(
            shard,
            data=self._write_table("data", name, tables["data"]),
            dead=self._write_table("dead", name, tables["dead"]),
            tally=tally(tables["data"], tables["dead"]),
        )

    def _kept_rows(self, shard: Shard, kind: str, keep: Rows) -> pa.Table:
        path, rows = (shard.data, shard.data_rows) if kind == "data" else (shard.dead, shard.dead_rows)
        if path is None:
            return pa.table({})
        table = pq.read_table(io.BytesIO(self.fs.cat_file(self._path(path))))
        return table.filter(pa.array(np.isin(rows, keep)))

    def _write_table(self, kind: str, name: str, table: pa.Table) -> str | None:
        if table.num_rows == 0:
            return None
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        # A name of its own for each try: should two writers of one shard live at once, each marker has its own files.
        path = f"{kind}/{name}-{uuid.uuid4().hex[:8]}.parquet"
        put(self.fs, self._path(path), buffer.getvalue())
        return path

    def _window(self, name: str) -> WindowFiles:
        values = orjson.loads(self.fs.cat_file(self._path("_commits", name)))
        return WindowFiles(values["data"], values["dead"], Tally(**values["tally"]))

    def _path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))


def tally(data: pa.Table, dead: pa.Table) -> Tally:
    """Counts over the rows of two output tables."""
    if data.num_rows == 0:
        counted: dict[str, Any] = {}
    else:
        counted = {
            "prompt_tokens": int(data["prompt_tokens"].to_numpy().sum()),
            "completion_tokens": int(data["completion_tokens"].to_numpy().sum()),
            "fallback": int(data["fallback"].to_numpy().sum()),
            "mixtures": dict(Counter(data["mixture"].to_pylist())),
            "finish_reasons": dict(Counter(data["finish_reason"].to_pylist())),
        }
    errors = dict(Counter(dead["error_type"].to_pylist())) if dead.num_rows else {}
    return Tally(data=data.num_rows, dead=dead.num_rows, errors=errors, **counted)


def without_overlap(shards: Iterable[Shard]) -> list[tuple[Shard, Rows]]:
    """Each shard with those of its rows that no earlier shard answers; shards with none are left out."""
    seen: Rows = np.empty(0, np.int64)
    kept = []
    for shard in shards:
        rows = np.setdiff1d(shard.rows, seen)
        seen = np.union1d(seen, rows)
        if len(rows):
            kept.append((shard, rows))
    return kept


def shard_prefix(window: int) -> str:
    """What the names of a window's shards start with."""
    return f"w{window:06d}-"


def window_of(shard_name: str) -> int:
    """The window of a shard, from its name."""
    return int(shard_name[1:7])


def _encoded(shard: Shard) -> bytes:
    return orjson.dumps(
        {
            "data": shard.data,
            "dead": shard.dead,
            "data_rows": _packed(shard.data_rows),
            "dead_rows": _packed(shard.dead_rows),
            "tally": asdict(shard.tally),
        }
    )


def _decoded(name: str, content: bytes) -> Shard:
    values = orjson.loads(content)
    return Shard(
        name,
        values["data"],
        values["dead"],
        _unpacked(values["data_rows"]),
        _unpacked(values["dead_rows"]),
        Tally(**values["tally"]),
    )


def _packed(rows: Rows) -> str:
    return base64.b64encode(zlib.compress(rows.astype("<u4").tobytes())).decode()


def _unpacked(text: str) -> Rows:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").astype(np.int64)


def _added(a: Any, b: Any) -> Any:
    return dict(Counter(a) + Counter(b)) if isinstance(a, dict) else a + b
