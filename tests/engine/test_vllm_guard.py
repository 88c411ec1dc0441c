"""Processes that end with the one that started them."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

_STARTED = """
import multiprocessing, subprocess, sys, time
from pipeline.engine.vllm.guard import Guard

if __name__ == "__main__":
    guard = Guard()
    if sys.argv[1] == "starting":
        with guard.starting():
            child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
            child.start()
            time.sleep(0.3)
            print(child.pid, flush=True)
            sys.stdin.read()
    child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, start_new_session=True)
    guard.hold([1_000_000_000])
    guard.hold([child.pid])
    if sys.argv[1] == "close":
        guard.close()
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def started(word: str, folder: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    script = folder / "started.py"  # a file, as what `multiprocessing` spawns reads it again
    script.write_text(_STARTED)
    parent = subprocess.Popen(
        [sys.executable, str(script), word],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.parametrize("moment", ["keep", "starting"])
def test_a_killed_process_takes_those_it_guards_along(moment: str, tmp_path: Path) -> None:
    parent, child = started(moment, tmp_path)
    parent.kill()
    parent.communicate()
    assert not psutil.wait_procs([child], timeout=10)[1]


def test_a_closed_guard_lets_them_live(tmp_path: Path) -> None:
    parent, child = started("close", tmp_path)
    parent.kill()
    parent.communicate()
    assert psutil.wait_procs([child], timeout=0.5)[1]
    child.kill()
