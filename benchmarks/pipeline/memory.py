"""Memory of the driver and of Ray's workers while a job runs, from /proc."""

import os
import threading
from pathlib import Path
from typing import Any


class MemoryWatch:
    """Samples every second, in a thread: the driver, each kind of worker, and all shared memory (Ray's object store).

    ``peaks``, in MiB: private memory of the driver; of one worker process, the largest by the name of what it runs
    (``IDLE`` between two tasks); of all processes together; and what more there is in shared memory than at the start.
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
            for pid, name in _family():
                held = _private_mib(pid)
                total += held
                self._note(name, held)
            self._note("all processes", total)
            self._note("object store", _shared_mib() - self._shared)

    def _note(self, name: str, held: float) -> None:
        self.peaks[name] = max(self.peaks.get(name, 0.0), held)


def _family() -> list[tuple[int, str]]:
    """This process and the workers of Ray, by what they run."""
    found = [(os.getpid(), "driver")]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:
            continue
        if title.startswith("ray::"):
            name = title.removeprefix("ray::").split(".")[0].split("(")[0].split("->")[-1]
            found.append((int(folder.name), name.strip() or "worker"))
    return found


def _private_mib(pid: int) -> float:
    """Resident memory that is not shared: without libraries and Ray's object store, which many processes map."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    held = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    return held[0] / 1024 if held else 0.0


def _shared_mib() -> float:
    """Shared memory of the whole machine that is in use: with Ray running, its object store before all else."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:")) / 1024
