"""SeaweedFS, an S3 server from PyPI, on free ports; it can be killed and started again over its data."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

BUCKET, KEY, SECRET = "lake", "test-key", "test-secret"
_GRPC = 10_000


class Weed:
    """A server with one bucket. `environment` is what clients need."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, *others = _free_ports(5)
        self._command = _command(folder, self.port, others)
        self._starts = 0
        self.start()

    @property
    def environment(self) -> dict[str, str]:
        """Credentials and endpoint, as AWS clients read them."""
        return environment(self.port)

    def start(self) -> None:
        """Start over whatever is in the folder, and wait until requests are answered."""
        self._starts += 1
        log = self.folder / f"log-{self._starts}"
        with log.open("wb") as out:
            self._server = subprocess.Popen(self._command, stdout=out, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + 90
        while b"running and ready" not in log.read_bytes():
            if self._server.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """SIGKILL, as when its machine dies."""
        self._server.kill()
        self._server.wait()


def environment(port: int) -> dict[str, str]:
    """Credentials and endpoint of a server, or of a proxy before it, on a port of this machine."""
    return {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _free_ports(count: int) -> list[int]:
    """Different ports that nobody listens on, and neither on the ones for gRPC, which are 10,000 above them."""
    found: set[int] = set()
    while len(found) < count:
        port = free_port()
        if port + _GRPC < 2**16 and not {port - _GRPC, port + _GRPC} & found and _is_free(port + _GRPC):
            found.add(port)
    return list(found)


def _is_free(port: int) -> bool:
    with socket.socket() as s, suppress(OSError):
        s.bind(("127.0.0.1", port))
        return True
    return False


def _command(folder: Path, port: int, others: Sequence[int]) -> list[str]:
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    names = ("master", "volume", "filer", "admin")
    ports = [f"-{name}.port={number}" for name, number in zip(names, others, strict=True)]
    off = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
    where = [f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
    (folder / "data").mkdir()
    config = [f"-s3.port={port}", f"-s3.config={folder / 's3.json'}"]
    return [weed, "-logtostderr=true", "mini", *where, *config, *ports, *off]
