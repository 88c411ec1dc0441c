"""What a run leaves that nobody should find later."""

import re

from .commit import KINDS, CommitLog
from .objects import half_written, names, remove

_SHARD_FILE = re.compile(r"\.?w\d{6}-.*\.parquet(\..*\.part)?")
_MARKER = re.compile(r"\.?(w\d{6}-|window-).*\.json(\..*\.part)?")


def discard(log: CommitLog) -> None:
    """Remove all markers, then the files that shards wrote; files of other names stay."""
    for kind, pattern in (("_commits", _MARKER), *((kind, _SHARD_FILE) for kind in KINDS)):
        for name in names(log.fs, log.path(kind)):
            if pattern.fullmatch(name):
                remove(log.fs, log.path(kind, name))


def sweep_unnamed(log: CommitLog) -> None:
    """Remove files of a finished run that no marker names, of writers that came after their window's sweep, markers of
    runs that were discarded, and what killed drivers were writing beside them.

    Costs a listing of all files, so it is done once, when all windows are finished; the caller holds the lease.
    """
    for name in names(log.fs, log.path("_commits")):
        if _MARKER.fullmatch(name) and not name.startswith(".") and not log.is_own_marker(name):
            remove(log.fs, log.path("_commits", name))
    named = {name for files in log.finished_windows().values() for name in (*files.data, *files.dead)}
    for kind in KINDS:
        for name in names(log.fs, log.path(kind)):
            if _SHARD_FILE.fullmatch(name) and f"{kind}/{name}" not in named:
                remove(log.fs, log.path(kind, name))
    for folder in (log.root, log.path("_plan"), log.path("_commits")):
        for name in half_written(log.fs, folder):
            remove(log.fs, f"{folder}/{name}")
