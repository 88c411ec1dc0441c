"""Allow one driver at a time to work on an output: a lease with heartbeats, taken over when its holder is dead.

    _lease/<n>.json    {"holder", "host", "pid", "process", "beat", "released"}

The driver that creates the object with the next number holds the lease; of two racing drivers the store lets one create
it. The holder rewrites its object every `BEAT_SECONDS` with a higher ``beat``. A lease is dead when its holder released
it, when its process on this machine is gone, or when its beat did not change for `EXPIRY_SECONDS` on the clock of the
driver that waits: clocks of two machines are never compared.

A holder that lost its lease stops. Until it notices, its late commits change nothing: see `storage.commit.window`.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from pipeline.errors import UserError
from pipeline.storage.store.objects import create, list_names, partial_files, put, read, remove
from pipeline.storage.store.redact import masked
from pipeline.storage.store.urls import open_url

BEAT_SECONDS, EXPIRY_SECONDS = 10.0, 60.0


@dataclass(frozen=True)
class _Holder:
    holder: str
    host: str
    pid: int
    process: str  # see `_process_identity`: the pid may belong to another process by now
    beat: int = 0
    released: bool = False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"

    def is_gone(self, own: "_Holder") -> bool:
        """Whether the process ran on the machine and in the container of ``own``, and does not run any more."""
        if not self.process or self.process.rpartition(" ")[0] != own.process.rpartition(" ")[0]:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it runs for another user
            pass
        return _process_identity(self.pid) not in ("", self.process)  # a process of another user may be hidden


class Lease:
    """The lease of an output folder, held inside a ``with`` block; a thread calls ``lost`` if it is taken over."""

    def __init__(
        self,
        url: str,
        lost: Callable[[], None],
        log: Callable[[str], None] = print,
        beat: float = BEAT_SECONDS,
        expiry: float = EXPIRY_SECONDS,
    ) -> None:
        self.url, self.lost, self.log, self.beat, self.expiry = url, lost, log, beat, expiry
        self.fs, root = open_url(url)
        self.folder = f"{root.rstrip('/')}/_lease"
        self._own = _Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _process_identity(os.getpid()))
        self._number = -1
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._send_beats, daemon=True, name="lease")

    def __enter__(self) -> "Lease":
        """Take the lease; `UserError` if another driver is at work."""
        while self._number < 0:
            last = self._last_number()
            if last >= 0:
                self._wait_until_dead(last)
            if create(self.fs, self._path(last + 1), self._content(0)):
                self._number = last + 1
        self._remove_older(self._number)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Mark the lease as released. It is not removed, so that its number is never used twice."""
        self._released.set()
        self._thread.join()
        try:
            self._remove_older(self._number + 1, only_partial=True)
            if self._last_number() == self._number:
                put(self.fs, self._path(self._number), self._content(0, released=True))
        except Exception as problem:  # a full disk; do not hide the error that stopped the job. The lease will expire.
            self.log(f"lease: {masked(self.url)}: {type(problem).__name__}: not released")

    def remove_partial(self) -> None:
        """Remove what a driver left that was killed in a heartbeat; do nothing while another one is at work."""
        if partial_files(self.fs, self.folder):
            with suppress(UserError), self:
                pass

    def holds(self) -> bool:
        """Whether nobody has taken the lease over, read from the store: ``lost`` may not have been called yet."""
        if self._last_number() != self._number:
            return False
        holder = self._read_holder(self._number)  # a store without conditional writes may hold another driver's
        return holder is None or holder.holder == self._own.holder

    def _send_beats(self) -> None:
        beat = 0
        while not self._released.wait(self.beat):
            beat += 1
            try:
                if not self.holds():
                    self.lost()
                    return
                put(self.fs, self._path(self._number), self._content(beat))
            except Exception as error:  # stores raise their own error types; the next beat may succeed
                self.log(f"lease: {masked(self.url)}: {type(error).__name__}: no heartbeat written")

    def _wait_until_dead(self, number: int) -> None:
        """Wait until the lease is dead; `UserError` as soon as its holder shows a sign of life."""
        holder, start, is_logged = self._read_holder(number), time.monotonic(), False
        while holder is not None and not holder.released and not holder.is_gone(self._own):
            if time.monotonic() - start > self.expiry:
                self.log(f"lease: taking over from {holder}, which sent no heartbeat for {self.expiry:.0f} s")
                return
            time.sleep(min(1.0, self.beat / 4))
            latest = self._read_holder(number)
            if latest is not None and not latest.released and latest != holder:
                raise UserError(f"run: {latest} is working on {masked(self.url)}; wait, or give another --output")
            holder = latest
            if not is_logged and time.monotonic() - start > self.beat:
                process = holder or "another process"
                self.log(f"lease: held by {process}; waiting up to {self.expiry:.0f} s for a heartbeat")
                is_logged = True

    def _remove_older(self, below: int, only_partial: bool = False) -> None:
        """Remove leases of lower numbers, also half-written ones: no driver reads them any more."""
        partial = partial_files(self.fs, self.folder)
        older = {f"{number:06d}.json" for number in range(below)}
        for name in partial if only_partial else list_names(self.fs, self.folder):
            if partial.get(name, name) in older:
                remove(self.fs, f"{self.folder}/{name}")

    def _read_holder(self, number: int) -> _Holder | None:
        content = read(self.fs, self._path(number))
        try:
            return None if content is None else _Holder(**orjson.loads(content))
        except (ValueError, TypeError):  # half-written, in a store that shows files while they are written
            return _Holder("", "an unknown host", 0, "")

    def _last_number(self) -> int:
        numbers = [int(n[:-5]) for n in list_names(self.fs, self.folder) if n.endswith(".json") and n[:-5].isdigit()]
        return max(numbers, default=-1)

    def _content(self, beat: int, released: bool = False) -> bytes:
        return orjson.dumps(asdict(self._own) | {"beat": beat, "released": released})

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number:06d}.json"


def _process_identity(pid: int) -> str:
    """Boot of the machine, PID namespace (a container has its own), and start time of the process.

    Tells a process from a later one with the same pid. Empty if it cannot be seen, or there is no /proc.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{boot} {namespace} {started}"
