"""Processes that end with the one that started them."""

import subprocess
import sys

import psutil

_STARTED = """
import subprocess, sys
from pipeline.engine.vllm.guard import Guard
child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, start_new_session=True)
guard = Guard([child.pid])
if sys.argv[1] == "close":
    guard.close()
print(child.pid, flush=True)
sys.stdin.read()
"""


def started(word: str) -> tuple[subprocess.Popen[str], psutil.Process]:
    words = [sys.executable, "-c", _STARTED, word]
    parent = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    return parent, psutil.Process(int(parent.stdout.readline()))


def test_a_killed_process_takes_those_it_guards_along() -> None:
    parent, child = started("keep")
    parent.kill()
    parent.communicate()
    assert not psutil.wait_procs([child], timeout=10)[1]


def test_a_closed_guard_lets_them_live() -> None:
    parent, child = started("close")
    parent.kill()
    parent.communicate()
    assert psutil.wait_procs([child], timeout=0.5)[1]
    child.kill()
