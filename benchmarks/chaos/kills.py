"""What is killed, and when: drawn from the seed of a run."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.processes import kill
from pipeline.storage.commit.log import CommitLog
from pipeline.storage.store.objects import names

DRIVER, NODE, STORE = "driver", "node", "store"
# What Ray's workers call themselves while they do the work of a stage; "worker" is any of them, idle ones too.
_TITLES = {"generate": "GenerateShards", "route": "RouteRecords", "write": "Write", "worker": "ray::"}
KINDS = (*_TITLES, DRIVER, NODE)
LEAST = 3  # kills of a run
_LOOK = 0.004  # seconds between two looks at the output or the processes; a commit takes about 10 ms


@dataclass(frozen=True)
class Kill:
    """One kill: so many seconds after so many committed files, or finished windows, were seen."""

    kind: str
    files: int
    windows: int
    delay: float


def draw(chance: random.Random, files: int, windows: int, most_delay: float, store: bool) -> list[Kill]:
    """`LEAST` to two more kills over the first two thirds of a run with so many data files and windows.

    The driver is among them at least once, and so is the ``store`` where it can be killed. A third follow a commit at
    once, or the end of a window: there the protocol is between two steps. Others come a while later, at most
    ``most_delay`` seconds, or while the job starts.
    """
    kinds = [DRIVER, *chance.choices(KINDS, k=chance.randint(LEAST - 1, LEAST + 1))]
    if store:
        kinds[-1] = STORE
    chance.shuffle(kinds)
    return [
        Kill(kind, *moment, round(chance.choice([0.0, chance.uniform(0, 0.03), chance.uniform(0, most_delay)]), 3))
        for kind, moment in zip(kinds, sorted(_moments(chance, len(kinds), files, windows)), strict=True)
    ]


def _moments(chance: random.Random, count: int, files: int, windows: int) -> list[tuple[int, int]]:
    """Pairs of files and windows to wait for; the end of a window but for the last counts as its files."""
    per_window = files // windows
    moments = []
    for _ in range(count):
        if windows > 1 and chance.random() < 0.2:
            window = chance.randint(1, windows - 1)
            moments.append((window * per_window, window))
        else:
            moments.append((chance.randint(0, files * 2 // 3), 0))
    return moments


class Progress:
    """What an output has come to, as far as it was looked at: the names of data files and of window markers."""

    def __init__(self, output: str) -> None:
        self._log = CommitLog(output)
        self._files: set[str] = set()
        self._windows: set[str] = set()

    def look(self) -> tuple[int, int]:
        """Data files ever seen and windows finished."""
        self._files |= {name for name in self._names("data") if name.endswith(".parquet")}
        self._windows |= set(self._names("_commits", "window-"))
        return len(self._files), len(self._windows)

    def reaches(self, wanted: Kill) -> bool:
        """Whether it is time for a kill, but for its delay."""
        files, windows = self.look()
        return files >= wanted.files and windows >= wanted.windows

    def _names(self, folder: str, prefix: str = "") -> list[str]:
        return names(self._log.fs, self._log.path(folder), prefix)


def wait(ready: Callable[[], bool], alive: Callable[[], bool], seconds: float) -> bool:
    """Wait until ``ready``; False where ``alive`` ends before, or the time."""
    deadline = time.monotonic() + seconds
    while not ready():
        if not alive() or time.monotonic() > deadline:
            return False
        time.sleep(_LOOK)
    return True


def strike(
    wanted: Kill, cluster: Cluster, chance: random.Random, alive: Callable[[], bool], patience: float
) -> str | None:
    """Kill a worker of the kind as soon as there is one, or the node; returns the kind that was killed.

    Any worker where there is none of the kind for ``patience`` seconds.
    """
    if wanted.kind == NODE:
        raylet = cluster.raylet()
        return NODE if raylet is not None and kill(raylet) else None
    for kind in (wanted.kind, "worker"):
        found = _workers(kind, cluster, alive, patience)
        if found and kill(chance.choice(found)):
            return kind
    return None


def _workers(kind: str, cluster: Cluster, alive: Callable[[], bool], patience: float) -> list[int]:
    """Workers that do the work of a stage, as soon as there are any; empty where there are none for a while."""
    found: list[int] = []

    def look() -> bool:
        found[:] = sorted(pid for pid, title in cluster.workers().items() if _TITLES[kind] in title)
        return bool(found)

    wait(look, alive, patience)
    return found
