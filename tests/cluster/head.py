"""A real Ray head with its dashboard and job server, as `ray start --head` starts it, on free ports."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.s3.weed import free_port

ROOT = Path(__file__).parents[2]


class Head:
    """Runs until `stop`. ``address`` is of the job server, ``environment`` what its clients need.

    ``agent_port``: where the node answers about itself, 52365 of a node that was given no other.
    """

    def __init__(self, cpus: int = 2) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="head-", dir="/tmp"))  # Ray's sockets need a short path
        self.metrics_port, self.agent_port, dashboard = free_port(), free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        ports = {
            "port": free_port(),
            "dashboard-port": dashboard,
            "ray-client-server-port": free_port(),
            "dashboard-agent-listen-port": self.agent_port,
            "metrics-export-port": self.metrics_port,
            "min-worker-port": 0,
            "max-worker-port": 0,
        }
        words = [
            *("start", "--head", "--block", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
            *("--dashboard-host=127.0.0.1", f"--temp-dir={self.folder}", f"--num-cpus={cpus}"),
            *(f"--object-store-memory={200 * 2**20}", *(f"--{name}={port}" for name, port in ports.items())),
        ]
        self._log = self.folder / "head.log"
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ray.scripts.scripts", *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                # `python` of the jobs must be this one.
                env=os.environ
                | self.environment
                | {
                    "RAY_prestart_worker_first_driver": "0",
                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                    "PYTHONPATH": str(ROOT),
                },
                cwd=ROOT,
                start_new_session=True,
            )
        self._wait()

    def _wait(self) -> None:
        deadline = time.monotonic() + 120
        while b"Ray runtime started" not in self._log.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text()[-2000:]
                self.stop()
                raise RuntimeError(f"ray start --head failed:\n{said}")
            time.sleep(0.2)

    def stop(self) -> None:
        """End all of its processes."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
