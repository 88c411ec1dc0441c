"""What killed drivers leave on a local disk, with real processes that are killed while they write."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.commit import CommitLog
from pipeline.storage.lease import Lease
from pipeline.storage.sweep import sweep_unnamed

KILLED = """
import os, signal, sys
from pipeline.storage.files import open_url
from pipeline.storage.objects import create, put
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
