"""Run a job that is killed again and again, restart it until it finishes, and count its output."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.kills import DRIVER, NODE, STORE, Kill, Progress, draw, strike, wait
from benchmarks.chaos.readers import OpenReaders
from benchmarks.chaos.records import count, seen, write_lines
from benchmarks.chaos.stores import Disk, Store
from pipeline.errors import UserError
from pipeline.storage.output.run import RUN, RunFolder
from tests import tiny

_ROOT = Path(__file__).parents[2]
_WORKER_SECONDS = 2.0  # to wait for a worker of a kind
_MAX_STARTS = 12  # of the job in one run
_STUCK_SECONDS = 240.0  # without reaching the next kill or the end, after which a job is stuck and killed


@dataclass(frozen=True)
class Kit:
    """Folders of a tiny model, its bank and its router."""

    model: Path
    bank: Path
    router: Path

    @classmethod
    def make(cls, folder: Path) -> "Kit":
        """Create all three below a folder."""
        model = tiny.make_model(folder / "model")
        return cls(model, tiny.make_bank(folder / "bank", model), tiny.make_router(folder / "router", model))

    def words(self, input_url: str, output: str, *more: str) -> list[str]:
        """Return the command line of a job."""
        return [
            *(sys.executable, "-m", "jobs.generate", "--input", input_url, "--output", output),
            *("model=custom", f"model.path={self.model}", "model.dtype=fp32", "bank=custom", f"bank.path={self.bank}"),
            *("router=custom", f"router.path={self.router}", "errors.budget=1", *more),
        ]


@dataclass(frozen=True)
class Size:
    """The size of a run's input and job."""

    least_lines: int = 60
    most_lines: int = 80
    window: int = 40
    shard: int = 5
    new_tokens: int = 16
    most_delay: float = 2.0  # seconds between a moment and its kill


SHORT = Size(least_lines=40, most_lines=48, window=30)
"""The size of the runs in `tests/chaos`."""


class Job:
    """A running command, in a process group of its own."""

    def __init__(self, words: Sequence[str], environment: dict[str, str], log: Path) -> None:
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                words,
                cwd=_ROOT,
                env=os.environ | environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def kill(self) -> bool:
        """Send SIGKILL to all of its processes; return False if it had ended before."""
        if not self.is_running:
            return False
        os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait() == -signal.SIGKILL


class Run:
    """A seeded run in its own folder. ``haste``: divides the delays of its kills and the time to wait for workers."""

    def __init__(
        self, seed: int, cluster: Cluster, kit: Kit, folder: Path, size: Size, store: Store, haste: int = 1
    ) -> None:
        self.seed, self.cluster, self.folder, self.store, self.haste = seed, cluster, folder, store, haste
        self.chance = chance = random.Random(seed)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        url = store.url(folder)
        self.output = f"{url}/out"
        lines = chance.randint(size.least_lines, size.most_lines)
        self.lines = write_lines(f"{url}/in.jsonl", chance, lines)
        windows = -(-lines // size.window)
        drawn = draw(chance, lines // size.shard, windows, size.most_delay, not isinstance(store, Disk))
        self.kills = [replace(kill, delay=round(kill.delay / haste, 3)) for kill in drawn]
        self.words = kit.words(
            f"{url}/in.jsonl",
            self.output,
            *(f"window.records={size.window}", f"shuffle.shard_records={size.shard}", "engine.batch_size=4"),
            *(f"generation.max_new_tokens={size.new_tokens}", f"engine.actors={chance.choice([1, 1, 1, 2])}"),
            f"cluster.address={cluster.address}",
            # In half of the runs the records are regrouped in many blocks.
            f"shuffle.block_records={chance.choice([2 * size.shard, 65_536])}",
        )
        self.progress = Progress(self.output)
        self.readers = OpenReaders(self.output, windows, isinstance(store, Disk))
        self.exits: list[int | str] = []  # of each start: the exit code, or why it was killed
        self.doubled_midway = 0
        self._struck: list[dict[str, Any]] = []
        self._start_time = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Run the job to its end; return the record of the run, ``exact`` if the output is as it must be."""
        with self.readers:
            self._start()
            is_done = False
            try:
                for wanted in self.kills:
                    is_done = not self._reach(wanted)
                    if is_done:
                        break
                    self._strike(wanted)
                while not (is_done or self._finished()):
                    self._start()
            finally:
                self.job.kill()
        return self._record()

    def _start(self) -> None:
        if len(self.exits) == _MAX_STARTS:
            raise RuntimeError(f"seed {self.seed}: the job did not finish in {_MAX_STARTS} starts: {self.exits}")
        self.job = Job(self.words, self.cluster.environment, self.folder / f"job-{len(self.exits) + 1}.log")

    def _reach(self, wanted: Kill) -> bool:
        """Wait for the moment of a kill, restarting a job that fails; return False if the job finishes before."""
        while True:
            if wait(lambda: self.progress.reaches(wanted), lambda: self.job.is_running, _STUCK_SECONDS):
                time.sleep(wanted.delay)
                if self.job.is_running:
                    return True
            if self._finished():
                return False
            self._start()

    def _strike(self, wanted: Kill) -> None:
        """Kill; the kill counts if the job still ran just after it."""
        files, windows = self.progress.look()
        if wanted.kind == DRIVER:
            struck = DRIVER if self.job.kill() else None
        elif wanted.kind == STORE:
            struck = STORE if self.store.kill(self.chance) else None
        else:
            struck = strike(
                wanted, self.cluster, self.chance, lambda: self.job.is_running, _WORKER_SECONDS / self.haste
            )
        if struck is None:
            return
        if struck == DRIVER or self.job.is_running:
            at = {"at_files": files, "at_windows": windows, "at_seconds": round(time.monotonic() - self._start_time, 1)}
            self._struck.append(asdict(wanted) | {"kind": struck} | at)
        if struck == NODE:
            self.cluster.replace_node()
        if struck == DRIVER:
            self.exits.append("killed")
            self._check_reader()
            self._start()

    def _finished(self) -> bool:
        """Wait until the job ends; return whether it succeeded."""
        if not wait(lambda: not self.job.is_running, lambda: True, _STUCK_SECONDS):
            self.job.kill()
            self.exits.append("stuck")
            return False
        self.exits.append(self.job.process.returncode)
        return self.exits[-1] == 0

    def _check_reader(self) -> None:
        """Check that a reader sees no row twice while no driver runs."""
        try:
            data, dead = seen(self.output)
        except UserError:  # the first driver was killed before it wrote anything
            return
        self.doubled_midway += len(data + dead) - len({*data, *dead})

    def _record(self) -> dict[str, Any]:
        counted = count(self.output, self.lines)
        run = RunFolder(self.output).read_json(RUN) or {}
        expected = {"data": len(self.lines.good), "dead": len(self.lines.bad)}
        counts_right = run.get("state") == "finished" and expected.items() <= run["counts"].items()
        is_read = not (self.doubled_midway or self.readers.errors)
        exact = counted.exact and counts_right and is_read and "stuck" not in self.exits
        return {
            "seed": self.seed,
            "haste": self.haste,
            "exact": exact,
            **asdict(counted),
            "doubled_midway": self.doubled_midway,
            "reads": self.readers.reads,
            "reader_errors": self.readers.errors,
            "counts_told_right": counts_right,
            "lines": len(self.lines.good) + len(self.lines.bad),
            "dead": len(self.lines.bad),
            "kills": self._struck,
            "exits": self.exits,
            "seconds": round(time.monotonic() - self._start_time, 1),
        }
