"""A Ray cluster on this machine: a head that stays up, and a node that may be killed and replaced."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from benchmarks.chaos.processes import descendants, kill, title
from pipeline.cluster.connect import LOCAL

# The head detects a dead node after a few seconds instead of half a minute, and a raylet detects a worker that died
# before it registered after ten seconds instead of a minute, in which its clients would stand still.
_SYSTEM = {
    **LOCAL,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
    "worker_register_timeout_seconds": 10,
}
_START_SECONDS = 120.0
_TRIES = 3  # of the start of a node


class Cluster:
    """Nodes that run inside a ``with`` block; `address` is for ``cluster.address=``, `environment` for drivers.

    Each node is a ``ray start --block`` with its own raylet, which can be killed to simulate a machine that fails.
    """

    def __init__(self, head_cpus: int = 1, extra_cpus: int = 2) -> None:
        self.cpus = (head_cpus, extra_cpus)
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # Ray's sockets need a short path
        self.address = f"127.0.0.1:{_free_port()}"
        # With its own token, the cluster does not depend on a token file of the user.
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self._nodes: list[subprocess.Popen[bytes]] = []
        self._count = 0

    def __enter__(self) -> "Cluster":
        try:
            port = self.address.rpartition(":")[2]
            head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder}")
            self._start(self.cpus[0], *head, f"--system-config={json.dumps(_SYSTEM)}")
            self._start(self.cpus[1], f"--address={self.address}")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def workers(self) -> dict[int, str]:
        """Return Ray's worker processes on all nodes, with their current titles."""
        found = {pid: title(pid) for node in self._nodes for pid in descendants(node.pid)}
        # A raylet exits with its agents, the head's as well: killing one would kill its node.
        return {pid: name for pid, name in found.items() if name.startswith("ray::") and "Agent" not in name}

    def raylet(self) -> int | None:
        """Return the raylet of the node that may be killed."""
        return next((pid for pid in descendants(self._nodes[-1].pid) if _is_raylet(pid)), None)

    def replace_node(self) -> None:
        """Start a new node in place of one whose raylet was killed."""
        dead = self._nodes.pop()
        _end(dead)
        self._start(self.cpus[1], f"--address={self.address}")

    def _start(self, cpus: int, *words: str) -> None:
        for left in reversed(range(_TRIES)):
            try:
                return self._try_to_start(cpus, *words)
            except RuntimeError:  # Ray waits a second for its head, which a busy machine may exceed
                if not left:
                    raise
                _end(self._nodes.pop())

    def _try_to_start(self, cpus: int, *words: str) -> None:
        self._count += 1
        log = self.folder / f"node-{self._count}.log"
        always = (
            *("start", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1", f"--num-cpus={cpus}"),
            # The system chooses the ports: Ray's own ranges assume one node per machine.
            *("--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={200 * 2**20}"),
        )
        with log.open("wb") as out:
            node = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *always, *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment | {"RAY_BACKEND_LOG_LEVEL": "fatal"},
                start_new_session=True,
            )
        self._nodes.append(node)
        deadline = time.monotonic() + _START_SECONDS
        while b"Ray runtime started" not in log.read_bytes():
            if node.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"a node of the cluster did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)

    def _stop(self) -> None:
        for node in reversed(self._nodes):
            _end(node)
        shutil.rmtree(self.folder, ignore_errors=True)


def _end(node: subprocess.Popen[bytes]) -> None:
    """Kill a node with all of its processes; Ray's own way to stop takes up to 20 s."""
    family = descendants(node.pid)
    node.kill()
    node.wait()
    for pid in family:
        kill(pid)


def _is_raylet(pid: int) -> bool:
    return title(pid).partition(" ")[0].endswith("/raylet")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
