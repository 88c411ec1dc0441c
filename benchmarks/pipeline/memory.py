"""Measure the memory of the driver and of Ray's workers while a job runs, from /proc."""

import os
import re
import threading
from pathlib import Path
from typing import Any

_STAGE = re.compile(r"MapBatches\(([\w.]+)")  # in the title of a task or actor of a stage


class MemoryWatch:
    """A thread that samples the memory of driver, workers and Ray's object store.

    ``peaks``, in MiB: private memory of the driver, of the largest worker process by its title (``IDLE`` between two
    tasks), of all processes together, and the growth of shared memory since the start.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self.peaks: dict[str, float] = {}
        self._seconds, self._shared = seconds, _shared_mib()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._end.wait(self._seconds):
            total = 0.0
            for pid, name in _processes():
                size = _private_mib(pid)
                total += size
                self._record(name, size)
            self._record("all processes", total)
            self._record("object store", _shared_mib() - self._shared)

    def _record(self, name: str, size: float) -> None:
        self.peaks[name] = max(self.peaks.get(name, 0.0), size)


def _processes() -> list[tuple[int, str]]:
    """Return this process and Ray's workers, with the name of the task that they run."""
    found = [(os.getpid(), "driver")]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        if title.startswith("ray::"):
            name = title.removeprefix("ray::").split(".")[0].split("(")[0].split("->")[-1]
            stages = _STAGE.findall(title)
            found.append((int(folder.name), stages[-1] if stages else name.strip() or "worker"))
    return found


def _private_mib(pid: int) -> float:
    """Return resident memory without shared pages, such as libraries and Ray's object store."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    sizes = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    return sizes[0] / 1024 if sizes else 0.0


def _shared_mib() -> float:
    """Return the shared memory in use on the machine; with Ray, mainly its object store."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:")) / 1024
