"""What killed drivers and late writers leave, and the sweep of a driver that slept."""

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import fsspec
import pytest

from pipeline.storage.commit import orphans as sweep_module
from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.lease import Lease
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import WindowFiles
from pipeline.storage.commit.orphans import remove_orphans
from pipeline.storage.commit.replace import replace_window
from pipeline.storage.commit.window import finish_window
from pipeline.storage.store.objects import StoreError, list_names
from tests.storage import memory_url
from tests.storage.commit.committing import WINDOW, data_table, visible_rows, write_shard

KILLED = """
import os, signal, sys
from pipeline.storage.input.files import open_url
from pipeline.storage.store.objects import create, put
os.link = os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
{"create": create, "put": put}[sys.argv[1]](*open_url(sys.argv[2]), b"{}")
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("create", "_commits/window-000002.json"),
        ("create", "_commits/w000002-abc-000000.json"),
        ("create", "_lease/000000.json"),
        ("put", "_lease/000000.json"),
        ("put", "_plan/plan.json"),
        ("put", "run.json"),
    ],
)
def test_what_a_killed_driver_was_writing_is_swept_by_the_next(tmp_path: Path, call: str, name: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, call, str(tmp_path / name)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [path.suffix for path in (tmp_path / name).parent.iterdir()] == [".part"]
    own = tmp_path / ".notes.part"  # of somebody else
    own.write_text("mine")
    with Lease(str(tmp_path), lambda: None):
        remove_orphans(MarkerStore(str(tmp_path)))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".notes.part", "_lease/000000.json"}


def amended(url: str) -> str:
    """Another command takes the output over and gives the window an answer more; returns its file."""
    other = MarkerStore(url)
    name, before = other.newest_marker(WINDOW)
    file = other.write_table("data", f"{other.shard_prefix(WINDOW)}retry", data_table([4]))
    assert file is not None
    replace_window(other, WINDOW, name, replace(before, data=[*before.data, file]))
    return file


@pytest.mark.parametrize("when", ["as it lists", "after it"])
def test_a_sweep_that_sleeps_removes_nothing_of_its_successor(when: str) -> None:
    store = MarkerStore(memory_url())
    write_shard(store, "a-0", [0, 1, 2])
    finish_window(store, WINDOW, 3)
    late = store.write_table("data", f"{store.shard_prefix(WINDOW)}late", data_table([0]))
    added: list[str] = []

    def sleeping(fs: fsspec.AbstractFileSystem, folder: str, prefix: str = "") -> list[str]:
        if folder.endswith("data") and not added:
            added.append(amended(store.url))
        return list_names(fs, folder, prefix)

    def check() -> None:
        if not added:
            added.append(amended(store.url))

    with mock.patch.object(sweep_module, "list_names", sleeping if when == "as it lists" else list_names):
        remove_orphans(store, check)
    assert visible_rows(store) == [0, 1, 2, 4]
    assert late is not None
    assert not store.fs.exists(store.path(late))


def test_a_sweep_of_who_lost_the_lease_removes_nothing() -> None:
    store = MarkerStore(memory_url())
    write_shard(store, "a-0", [0, 1, 2])
    finish_window(store, WINDOW, 3)
    late = store.write_table("data", f"{store.shard_prefix(WINDOW)}late", data_table([0]))
    assert late is not None

    def check() -> None:
        raise RuntimeError("taken over")

    with pytest.raises(RuntimeError, match="taken over"):
        remove_orphans(store, check)
    assert store.fs.exists(store.path(late))


def test_what_came_late_is_swept_behind_a_fence() -> None:
    """A command that slept since it looked at its lease cannot give the window a marker that names what is gone."""
    store = MarkerStore(memory_url())
    write_shard(store, "a-0", [0, 1, 2])
    finish_window(store, WINDOW, 3)
    slept = MarkerStore(store.url)
    before, _ = slept.newest_marker(WINDOW)
    late = slept.write_table("data", f"{slept.shard_prefix(WINDOW)}late", data_table([4]))
    assert late is not None
    remove_orphans(store, fence=True)
    with pytest.raises(StoreError, match="meanwhile"):
        replace_window(slept, WINDOW, before, WindowFiles([late], [], Counts(data=1)))
    assert visible_rows(store) == [0, 1, 2]
