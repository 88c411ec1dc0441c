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
from pipeline.storage.commit.log import CommitLog
from pipeline.storage.commit.markers import WindowFiles
from pipeline.storage.commit.orphans import sweep_unnamed
from pipeline.storage.store.objects import StoreError, names
from tests.storage import memory_url
from tests.storage.commit.committing import WINDOW, data_table, visible_rows, write_shard

KILLED = """
import os, signal, sys
from pipeline.storage.input.files import open_url
from pipeline.storage.store.objects import create, put
os.link = os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
{"create": create, "put": put}[sys.argv[1]](*open_url(sys.argv[2]), b"{}")
"""


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
        sweep_unnamed(CommitLog(str(tmp_path)))
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {".notes.part", "_lease/000000.json"}


def amended(url: str) -> str:
    """Another command takes the output over and gives the window an answer more; returns its file."""
    other = CommitLog(url)
    name, before = other.newest(WINDOW)
    file = other.write_table("data", f"{other.prefix(WINDOW)}retry", data_table([4]))
    assert file is not None
    other.replace_window(WINDOW, name, replace(before, data=[*before.data, file]))
    return file


@pytest.mark.parametrize("when", ["as it lists", "after it"])
def test_a_sweep_that_sleeps_removes_nothing_of_its_successor(when: str) -> None:
    log = CommitLog(memory_url())
    write_shard(log, "a-0", [0, 1, 2])
    log.finish_window(WINDOW, 3)
    late = log.write_table("data", f"{log.prefix(WINDOW)}late", data_table([0]))
    added: list[str] = []

    def sleeping(fs: fsspec.AbstractFileSystem, folder: str, prefix: str = "") -> list[str]:
        if folder.endswith("data") and not added:
            added.append(amended(log.url))
        return names(fs, folder, prefix)

    def check() -> None:
        if not added:
            added.append(amended(log.url))

    with mock.patch.object(sweep_module, "names", sleeping if when == "as it lists" else names):
        sweep_unnamed(log, check)
    assert visible_rows(log) == [0, 1, 2, 4]
    assert late is not None
    assert not log.fs.exists(log.path(late))


def test_a_sweep_of_who_lost_the_lease_removes_nothing() -> None:
    log = CommitLog(memory_url())
    write_shard(log, "a-0", [0, 1, 2])
    log.finish_window(WINDOW, 3)
    late = log.write_table("data", f"{log.prefix(WINDOW)}late", data_table([0]))
    assert late is not None

    def check() -> None:
        raise RuntimeError("taken over")

    with pytest.raises(RuntimeError, match="taken over"):
        sweep_unnamed(log, check)
    assert log.fs.exists(log.path(late))


def test_what_came_late_is_swept_behind_a_fence() -> None:
    """A command that slept since it looked at its lease cannot give the window a marker that names what is gone."""
    log = CommitLog(memory_url())
    write_shard(log, "a-0", [0, 1, 2])
    log.finish_window(WINDOW, 3)
    slept = CommitLog(log.url)
    before, _ = slept.newest(WINDOW)
    late = slept.write_table("data", f"{slept.prefix(WINDOW)}late", data_table([4]))
    assert late is not None
    sweep_unnamed(log, fence=True)
    with pytest.raises(StoreError, match="meanwhile"):
        slept.replace_window(WINDOW, before, WindowFiles([late], [], Counts(data=1)))
    assert visible_rows(log) == [0, 1, 2]
