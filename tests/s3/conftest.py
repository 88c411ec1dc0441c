"""A real S3 server on free ports."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET, KEY, SECRET = "lake", "test-key", "test-secret"


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start SeaweedFS (from PyPI) with one bucket; credentials and endpoint are set in the environment."""
    folder = tmp_path_factory.mktemp("s3")
    port = _free_port()
    log = folder / "log"
    with log.open("wb") as out:
        server = subprocess.Popen(_command(folder, port), stdout=out, stderr=subprocess.STDOUT)
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", KEY)
    patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        _wait(server, log)
        yield f"s3://{BUCKET}"
    finally:
        patch.undo()
        server.kill()
        server.wait()


def _command(folder: Path, port: int) -> list[str]:
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    ports = [f"-{name}.port={_free_port()}" for name in ("master", "volume", "filer", "admin")]
    off = ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
    where = [f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-bucket={BUCKET}"]
    (folder / "data").mkdir()
    config = [f"-s3.port={port}", f"-s3.config={folder / 's3.json'}"]
    return [weed, "-logtostderr=true", "mini", *where, *config, *ports, *off]


def _wait(server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while b"running and ready" not in log.read_bytes():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"SeaweedFS did not start:\n{log.read_text()[-2000:]}")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
