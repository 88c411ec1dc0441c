"""The stores of the runs: this machine's disk, or a real S3 server that may be killed and restarted."""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol

from s3fs import S3FileSystem

from tests.s3.weed import BUCKET, Weed

_AWAY = (0.5, 4.0)  # seconds until a killed server is restarted


class Store(Protocol):
    """A store that holds the input and output of runs."""

    def __enter__(self) -> "Store": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def url(self, folder: Path) -> str:
        """Return the URL of an empty folder for a run."""

    def kill(self, chance: random.Random) -> bool:
        """Kill the server and restart it after a while; return False if there is no server."""


class Disk:
    """This machine's disk, which cannot be killed."""

    def __enter__(self) -> "Disk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def url(self, folder: Path) -> str:
        """Return the folder itself."""
        return str(folder)

    def kill(self, chance: random.Random) -> bool:
        """Do nothing: there is no server."""
        return False


class S3:
    """SeaweedFS on a free port; this process and its children find it by environment variables."""

    def __enter__(self) -> "S3":
        self._folder = Path(tempfile.mkdtemp(prefix="chaos-s3-"))
        self._server = Weed(self._folder)
        self._before = dict(os.environ)
        os.environ.update(self._server.environment)
        S3FileSystem.clear_instance_cache()
        self._runs = 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.kill()
        os.environ.clear()
        os.environ.update(self._before)
        S3FileSystem.clear_instance_cache()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, folder: Path) -> str:
        """Return a new prefix for each run."""
        self._runs += 1
        return f"s3://{BUCKET}/{folder.name}-{self._runs}"

    def kill(self, chance: random.Random) -> bool:
        """Kill the server and restart it; the data stays."""
        self._server.kill()
        time.sleep(chance.uniform(*_AWAY))
        self._server.start()
        return True


STORES: dict[str, type[Disk] | type[S3]] = {"disk": Disk, "s3": S3}
