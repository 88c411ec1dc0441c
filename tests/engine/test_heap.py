"""Freed memory that stays with the process."""

import os
import subprocess
import sys

import pytest

# Faults of pages while a block of 40 MB is allocated, filled and freed again and again.
_FAULTS = """
import ctypes, resource, sys
from pipeline.engine.heap import keep_freed_memory
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


@pytest.mark.skipif(
    not hasattr(os, "confstr") or "glibc" not in (os.confstr("CS_GNU_LIBC_VERSION") or ""), reason="glibc"
)
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
