"""Delete orphaned files and markers: what no window marker names.

Files go before shard markers: as long as a window has a shard marker, `sweep_finished_windows` looks at it again.
"""

import re
from collections.abc import Callable, Sequence

from pipeline.storage.store.bulk import remove_each
from pipeline.storage.store.objects import list_names, partial_files, remove

from .marker_store import MarkerStore
from .markers import WindowFiles, is_shard_marker, newest_markers, next_marker, window_marker, window_of
from .output_files import KINDS

_SHARD_FILE = re.compile(r"\.?w\d{6}-.*\.parquet(\..*\.part)?")
_MARKER = re.compile(r"\.?(w\d{6}-|window-).*\.json(\..*\.part)?")


def sweep_window(
    store: MarkerStore, window: int, listed: Sequence[str], check: Callable[[], None] = lambda: None
) -> WindowFiles:
    """Delete what a finished window left behind, and return the files that its newest marker names.

    ``listed``: objects of the window; of these, files that the newest marker does not name and shard markers go. Older
    window markers go too. They were listed before ``check``, or before the marker was written, so that nothing that a
    successor writes is deleted. `FileNotFoundError` if the window has no marker.
    """
    markers = store.window_markers(window)
    newest = newest_markers(markers, store.run).get(window, window_marker(window, store.run))
    files = next(store.read_windows([newest]))
    referenced = {*files.data, *files.dead}
    older = [f"_commits/{name}" for name in sorted(set(markers) - {newest})]
    orphans = [store.path(path) for path in (*older, *listed) if path not in referenced]
    check()
    markers_folder = store.path("_commits", "")
    remove_each(store.fs, (path for path in orphans if not path.startswith(markers_folder)))
    remove_each(store.fs, (path for path in orphans if path.startswith(markers_folder)))
    return files


def sweep_finished_windows(store: MarkerStore, check: Callable[[], None] = lambda: None, fence: bool = False) -> int:
    """Sweep finished windows that still have shard markers; return their number.

    ``check`` raises if the caller lost the lease. ``fence``: call `fence_window` first, because a command that retries
    dead letters may have written late.
    """
    found = list_names(store.fs, store.path("_commits"))
    late = {window_of(name) for name in found if is_shard_marker(name, store.run)}
    windows = sorted(late & newest_markers(found, store.run).keys())
    for window in windows:
        if fence:
            fence_window(store, window)
        sweep_window(store, window, store.list_window(window), check)
    return len(windows)


def fence_window(store: MarkerStore, window: int) -> None:
    """Write the newest marker of a finished window again, as its next version.

    A driver that lost its lease and still holds the old version can then not name deleted files in a newer one.
    """
    name, files = store.newest_marker(window)
    store.create_window(next_marker(name), files)  # if it exists, another driver did the same a moment ago


def remove_orphans(store: MarkerStore, check: Callable[[], None] = lambda: None, fence: bool = False) -> None:
    """Delete all files of a finished run that no marker names, markers of discarded runs, and half-written objects.

    Lists all files, so it is called once, when all windows are finished. The caller holds the lease; ``check`` raises
    if it lost the lease. Files are listed first, then markers are read, then the lease is checked: so nothing that a
    successor writes is deleted. ``fence``: as for `sweep_finished_windows`.
    """
    markers = list_names(store.fs, store.path("_commits"))
    listed = [
        f"{kind}/{name}"
        for kind in KINDS
        for name in list_names(store.fs, store.path(kind))
        if _SHARD_FILE.fullmatch(name)
    ]
    folders = (store.root, store.path("_plan"), store.path("_commits"))
    partial = [f"{folder}/{name}" for folder in folders for name in partial_files(store.fs, folder)]
    referenced = store.referenced_files()
    if fence and (late := {window_of(path.partition("/")[2].lstrip(".")) for path in listed if path not in referenced}):
        for window in sorted(late & store.finished_markers().keys()):
            fence_window(store, window)
        referenced = store.referenced_files()
    check()
    foreign = (
        store.path("_commits", name)
        for name in markers
        if _MARKER.fullmatch(name) and not name.startswith(".")
        if not (is_shard_marker(name, store.run) or newest_markers([name], store.run))
    )
    remove_each(store.fs, foreign)
    remove_each(store.fs, (*(store.path(path) for path in listed if path not in referenced), *partial))


def foreign_files(store: MarkerStore) -> list[str]:
    """The files in the folders of the output's rows that no run has written: readers would take them for rows."""
    names = ((kind, name) for kind in KINDS for name in list_names(store.fs, store.path(kind)))
    return [f"{kind}/{name}" for kind, name in names if not name.startswith(".") and not _SHARD_FILE.fullmatch(name)]


def discard_run(store: MarkerStore) -> None:
    """Delete all markers, then the files that shards wrote; files of other names stay."""
    for kind, pattern in (("_commits", _MARKER), *((kind, _SHARD_FILE) for kind in KINDS)):
        for name in list_names(store.fs, store.path(kind)):
            if pattern.fullmatch(name):
                remove(store.fs, store.path(kind, name))
