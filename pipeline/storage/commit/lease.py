"""One driver at a time for an output: a lease with heartbeats, taken over when its holder is dead.

    _lease/<n>.json    {"holder", "host", "pid", "boot", "beat", "released"}

Whoever creates the object with the next number holds the lease; the store lets one of two racing drivers create it.
The holder rewrites its object every few seconds with a higher ``beat``. A lease is dead when its holder released it,
when its process is gone (same machine), or when its beat did not change for `EXPIRY` seconds as seen by the clock of
the one who waits: clocks of two machines are never compared.

A holder that lost its lease stops. Until it notices, its late commits change nothing: see `storage.commit.log`.
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from pipeline.errors import UserError
from pipeline.storage.store.objects import create, half_written, names, put, read, remove
from pipeline.storage.store.redact import masked
from pipeline.storage.store.urls import open_url

BEAT, EXPIRY = 10.0, 60.0  # seconds


@dataclass(frozen=True)
class _Holder:
    holder: str
    host: str
    pid: int
    boot: str  # of the machine and its container, and when the process began: a pid may be another process by now
    beat: int = 0
    released: bool = False

    def is_gone(self, here: "_Holder") -> bool:
        """Whether the process was one of this machine, where it would be seen, and does not live any more."""
        return bool(self.boot) and _place(self.boot) == _place(here.boot) and not _lives(self.pid, self.boot)


class Lease:
    """The lease of an output folder; hold it with ``with``.

    ``lost``: called once, in a thread, when another driver has taken the lease over.
    """

    def __init__(
        self,
        url: str,
        lost: Callable[[], None],
        say: Callable[[str], None] = print,
        beat: float = BEAT,
        expiry: float = EXPIRY,
    ) -> None:
        self.url, self.lost, self.say, self.beat, self.expiry = url, lost, say, beat, expiry
        self.fs, root = open_url(url)
        self.folder = f"{root.rstrip('/')}/_lease"
        self._me = _Holder(uuid.uuid4().hex, socket.gethostname(), os.getpid(), _boot(os.getpid()))
        self._number = -1
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")

    def __enter__(self) -> "Lease":
        """Take the lease; `UserError` where another driver is at work."""
        while self._number < 0:
            last = self._last()
            if last >= 0:
                self._wait_until_dead(last)
            if create(self.fs, self._path(last + 1), self._content(0)):
                self._number = last + 1
        self._sweep(self._number)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lease. It is marked, not removed: so its number is never used twice.

        Where the store refuses that, as a full disk does, the next driver waits until this one is seen to be gone.
        """
        self._end.set()
        self._thread.join()
        try:
            self._sweep(self._number + 1, only_halves=True)
            if self._last() == self._number:
                put(self.fs, self._path(self._number), self._content(0, released=True))
        except Exception as problem:  # stores raise kinds of their own, and what ended the job says more
            self.say(f"lease: {masked(self.url)}: {type(problem).__name__}: not released")

    def holds(self) -> bool:
        """Whether nobody has taken the lease over, as the store says now: one that slept has not been told yet."""
        return self._last() == self._number and not self._is_taken()

    def _keep(self) -> None:
        beat = 0
        while not self._end.wait(self.beat):
            beat += 1
            try:
                if not self.holds():
                    self.lost()
                    return
                put(self.fs, self._path(self._number), self._content(beat))
            except Exception as error:  # stores raise kinds of their own; the next beat may go through
                self.say(f"lease: {masked(self.url)}: {type(error).__name__}: no heartbeat written")

    def _is_taken(self) -> bool:
        """Whether another driver believed it was the first too: in a store without conditional writes."""
        holder = self._holder(self._number)
        return holder is not None and holder.holder != self._me.holder

    def _wait_until_dead(self, number: int) -> None:
        seen, since, told = self._holder(number), time.monotonic(), False
        while True:
            if seen is None or seen.released or seen.is_gone(self._me):
                return
            if time.monotonic() - since > self.expiry:
                self.say(f"lease: taking over from {_named(seen)}, which gave no sign of life for {self.expiry:.0f} s")
                return
            time.sleep(min(1.0, self.beat / 4))
            now = self._holder(number)
            if now is not None and not now.released and now != seen:
                raise UserError(
                    f"run: {_named(now)} is working on {masked(self.url)}; wait until it has ended, or give another"
                    " --output"
                )
            seen = now
            if not told and time.monotonic() - since > self.beat:
                self.say(f"lease: held by {_named(seen)}; waiting up to {self.expiry:.0f} s for a sign of life")
                told = True

    def _sweep(self, below: int, only_halves: bool = False) -> None:
        """Remove leases of lower numbers, whole or half written: nobody takes one of those any more."""
        halves = half_written(self.fs, self.folder)
        older = {f"{number:06d}.json" for number in range(below)}
        for name in halves if only_halves else names(self.fs, self.folder):
            if halves.get(name, name) in older:
                remove(self.fs, f"{self.folder}/{name}")

    def _holder(self, number: int) -> _Holder | None:
        content = read(self.fs, self._path(number))
        try:
            return None if content is None else _Holder(**orjson.loads(content))
        except (ValueError, TypeError):  # half of it, of a store that shows files as they are written
            return _Holder("", "a host unknown", 0, "")

    def _last(self) -> int:
        numbers = [int(n[:-5]) for n in names(self.fs, self.folder) if n.endswith(".json") and n[:-5].isdigit()]
        return max(numbers, default=-1)

    def _content(self, beat: int, released: bool = False) -> bytes:
        return orjson.dumps(asdict(self._me) | {"beat": beat, "released": released})

    def _path(self, number: int) -> str:
        return f"{self.folder}/{number:06d}.json"


def _named(holder: _Holder | None) -> str:
    return f"process {holder.pid} on {holder.host}" if holder else "another process"


def _boot(pid: int) -> str:
    """What tells a process from later ones with its number; empty where it is not seen or there is no /proc.

    The boot of the machine, the namespace of its process numbers (a container has its own), the start of the process.
    """
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        numbers = os.readlink("/proc/self/ns/pid")
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{machine} {numbers} {started}"


def _place(boot: str) -> str:
    return boot.rpartition(" ")[0]


def _lives(pid: int, boot: str) -> bool:
    """Whether the process of that number lives, and began when ``boot`` says."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    now = _boot(pid)
    return not now or now == boot  # of others' processes not all may be seen
