"""What a run leaves that nobody should find later."""

import re
from collections.abc import Callable

from pipeline.storage.store.objects import half_written, names, remove

from .log import KINDS, CommitLog
from .markers import window_of

_SHARD_FILE = re.compile(r"\.?w\d{6}-.*\.parquet(\..*\.part)?")
_MARKER = re.compile(r"\.?(w\d{6}-|window-).*\.json(\..*\.part)?")


def discard(log: CommitLog) -> None:
    """Remove all markers, then the files that shards wrote; files of other names stay."""
    for kind, pattern in (("_commits", _MARKER), *((kind, _SHARD_FILE) for kind in KINDS)):
        for name in names(log.fs, log.path(kind)):
            if pattern.fullmatch(name):
                remove(log.fs, log.path(kind, name))


def sweep_unnamed(log: CommitLog, check: Callable[[], None] = lambda: None, fence: bool = False) -> None:
    """Remove files of a finished run that no marker names, of writers that came after their window's sweep, markers of
    runs that were discarded, and what killed drivers were writing beside them.

    Costs a listing of all files, so it is done once, when all windows are finished; the caller holds the lease, and
    ``check`` raises where it does so no more. Listed first, then looked at the markers, and at the lease last: nothing
    that a successor writes is among what is removed. ``fence``: see `CommitLog.sweep_finished`.
    """
    markers = names(log.fs, log.path("_commits"))
    listed = [
        f"{kind}/{name}" for kind in KINDS for name in names(log.fs, log.path(kind)) if _SHARD_FILE.fullmatch(name)
    ]
    folders = (log.root, log.path("_plan"), log.path("_commits"))
    halves = [f"{folder}/{name}" for folder in folders for name in half_written(log.fs, folder)]
    named = log.named()
    if fence and (late := {window_of(path.partition("/")[2].lstrip(".")) for path in listed if path not in named}):
        for window in sorted(late & log.finished().keys()):
            log.fence(window)
        named = log.named()
    check()
    for name in markers:
        if _MARKER.fullmatch(name) and not name.startswith(".") and not log.is_own_marker(name):
            remove(log.fs, log.path("_commits", name))
    for path in (*(log.path(path) for path in listed if path not in named), *halves):
        remove(log.fs, path)
