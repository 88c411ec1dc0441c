"""Draw the kills of a run from its seed, and execute them."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.processes import kill
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.store.objects import list_names

DRIVER, NODE, STORE = "driver", "node", "store"
# Titles of Ray's workers while they run a stage; "worker" is any of them, idle ones too.
_TITLES = {"generate": "GenerateShards", "route": "RouteRecords", "write": "CommitShards", "worker": "ray::"}
KINDS = (*_TITLES, DRIVER, NODE)
MIN_KILLS = 3
_POLL_SECONDS = 0.004  # a commit takes about 10 ms


@dataclass(frozen=True)
class Kill:
    """One kill: ``delay`` seconds after ``files`` data files and ``windows`` finished windows were seen."""

    kind: str
    files: int
    windows: int
    delay: float


def draw(chance: random.Random, files: int, windows: int, max_delay: float, store: bool) -> list[Kill]:
    """Draw `MIN_KILLS` to `MIN_KILLS` + 2 kills over the first two thirds of a run of ``files`` files.

    At least one is of the driver, and one of the ``store`` if it can be killed. A third of them follow a commit or the
    end of a window at once, between two steps of the protocol. The others come up to ``max_delay`` seconds later, or
    while the job starts.
    """
    kinds = [DRIVER, *chance.choices(KINDS, k=chance.randint(MIN_KILLS - 1, MIN_KILLS + 1))]
    if store:
        kinds[-1] = STORE
    chance.shuffle(kinds)
    return [
        Kill(kind, *moment, round(chance.choice([0.0, chance.uniform(0, 0.03), chance.uniform(0, max_delay)]), 3))
        for kind, moment in zip(kinds, sorted(_moments(chance, len(kinds), files, windows)), strict=True)
    ]


def _moments(chance: random.Random, count: int, files: int, windows: int) -> list[tuple[int, int]]:
    """Draw pairs of files and windows to wait for; the end of a window (not the last) comes with its files."""
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
    """Data files and window markers that were seen in an output so far."""

    def __init__(self, output: str) -> None:
        self._markers = MarkerStore(output)
        self._files: set[str] = set()
        self._windows: set[str] = set()

    def look(self) -> tuple[int, int]:
        """Return the number of data files ever seen and of finished windows."""
        self._files |= {name for name in self._names("data") if name.endswith(".parquet")}
        self._windows |= set(self._names("_commits", "window-"))
        return len(self._files), len(self._windows)

    def reaches(self, wanted: Kill) -> bool:
        """Whether the moment of a kill has come, before its delay."""
        files, windows = self.look()
        return files >= wanted.files and windows >= wanted.windows

    def _names(self, folder: str, prefix: str = "") -> list[str]:
        return list_names(self._markers.fs, self._markers.path(folder), prefix)


def wait(ready: Callable[[], bool], alive: Callable[[], bool], seconds: float) -> bool:
    """Wait until ``ready``; return False if ``alive`` ends or the time is over before."""
    deadline = time.monotonic() + seconds
    while not ready():
        if not alive() or time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def strike(
    wanted: Kill, cluster: Cluster, chance: random.Random, alive: Callable[[], bool], patience: float
) -> str | None:
    """Kill the node, or a worker of the kind as soon as there is one; return the kind that was killed.

    If there is no worker of the kind for ``patience`` seconds, any worker is killed.
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
    """Wait for workers that run a stage; return none if there are none for ``patience`` seconds."""
    found: list[int] = []

    def look() -> bool:
        found[:] = sorted(pid for pid, title in cluster.workers().items() if _TITLES[kind] in title)
        return bool(found)

    wait(look, alive, patience)
    return found
