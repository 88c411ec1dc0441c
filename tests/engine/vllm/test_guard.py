"""Processes that end with the one that started them."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

_CHILD = """
import os, pathlib, signal, sys, time

def asked(*args):
    pathlib.Path(sys.argv[2]).write_text("asked")
    if sys.argv[1] != "stubborn":
        sys.exit()

signal.signal(signal.SIGTERM, asked)
print("ready", flush=True)
if sys.argv[1] == "stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(600)
"""

_STARTED = """
import multiprocessing, subprocess, sys, time
from pipeline.engine.vllm import guard as module

if __name__ == "__main__":
    word, note, code = sys.argv[1:]
    module._GRACE = 0.5
    guard = module.Guard()
    if word == "starting":
        with guard.starting():
            child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
            child.start()
            time.sleep(0.3)
            print(child.pid, flush=True)
            sys.stdin.read()
    command = [sys.executable, "-c", code, word, note]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    guard.hold([1_000_000_000])
    guard.hold([child.pid])
    if word == "close":
        guard.close()
    print(child.pid, flush=True)
    sys.stdin.read()
"""


def started(word: str, folder: Path) -> tuple[subprocess.Popen[str], psutil.Process]:
    script = folder / "started.py"  # a file, as what `multiprocessing` spawns reads it again
    script.write_text(_STARTED)
    parent = subprocess.Popen(
        [sys.executable, str(script), word, str(folder / "note"), _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout
    return parent, psutil.Process(int(parent.stdout.readline()))


@pytest.mark.long
@pytest.mark.parametrize("moment", ["keep", "stubborn", "stopped", "starting"])
def test_a_killed_process_takes_what_it_guards_along(moment: str, tmp_path: Path) -> None:
    parent, child = started(moment, tmp_path)
    parent.kill()
    parent.communicate()
    assert not psutil.wait_procs([child], timeout=20)[1]
    assert (tmp_path / "note").exists() == (moment in ("keep", "stubborn"))


@pytest.mark.long
def test_a_closed_guard_lets_them_live(tmp_path: Path) -> None:
    parent, child = started("close", tmp_path)
    parent.kill()
    parent.communicate()
    assert psutil.wait_procs([child], timeout=0.5)[1]
    child.kill()
