"""Freed memory that stays with the process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Faults of pages while a block of 40 MB is allocated, filled and freed again and again.
_FAULTS = """
import ctypes, resource, sys
from pipeline.heap import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
size = 40 * 2**20
def use():
    block = libc.malloc(size)
    libc.memset(block, 1, size)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, kept)
"""


# Megabytes held before and after, where threads have freed blocks between others that are in use.
_HELD = """
import ctypes, threading
from pipeline.heap import trim_heap
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def use():
    blocks = [libc.malloc(2**16) for _ in range(2000)]
    for block in blocks:
        libc.memset(block, 1, 2**16)
    for number, block in enumerate(blocks):
        if number % 100 != 99:
            libc.free(block)
def held():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("RssAnon"))
thread = threading.Thread(target=use)
thread.start()
thread.join()
before = held()
print(before, trim_heap(), held())
"""

# Arenas of a process in which sixteen threads allocate at the same time.
_ARENAS = """
import ctypes, sys, threading
from pipeline.heap import limit_arenas
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.fopen.restype, libc.malloc_info.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
libc.fclose.argtypes = [ctypes.c_void_p]
shared = limit_arenas() if sys.argv[1] == "share" else None
together = threading.Barrier(16)
def use():
    together.wait()
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=use) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, file)
libc.fclose(file)
print(open(sys.argv[2]).read().count("<heap nr="), shared)
"""

glibc = pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="glibc"
)


@pytest.mark.long
@glibc
def test_blocks_that_are_freed_are_not_given_back_to_the_system() -> None:
    def run(word: str) -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-c", _FAULTS, word], capture_output=True, text=True, check=True)
        faults, kept = done.stdout.split()
        return int(faults), kept

    given_back, _ = run("give")
    kept_faults, kept = run("keep")
    assert kept == "True"
    assert given_back > 1000
    assert kept_faults < given_back / 10


@glibc
def test_memory_that_other_threads_have_freed_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", _HELD], capture_output=True, text=True, check=True)
    before, given, after = done.stdout.split()
    assert given == "True"
    assert int(after) < int(before) - 100


@glibc
def test_threads_share_two_arenas(tmp_path: Path) -> None:
    def run(word: str) -> list[str]:
        command = [sys.executable, "-c", _ARENAS, word, str(tmp_path / word)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert int(run("own")[0]) > 4
    arenas, shared = run("share")
    assert shared == "True"
    assert int(arenas) <= 3  # one more where the process had two threads before
