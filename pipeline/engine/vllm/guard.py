"""Processes and files that must not outlive this one."""

import multiprocessing
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_EVERY = 0.05  # seconds between looks at what has been started
_GRACE = 5.0  # seconds from asking processes to end to killing them

# Lines say what to do at the end of the pipe, the last one of each kind counts: `kill` with ids, `remove` with a path.
# An id that is gone may soon be that of another process: only what still lives is killed.
_SCRIPT = """
alive() { for id in $ids; do kill -0 "$id" && return 0; done; return 1; }
while read -r what rest; do
    case $what in kill) ids=$rest ;; remove) path=$rest ;; esac
done
alive && kill $ids
while alive && [ $((tries += 1)) -le TRIES ]; do sleep 0.1; done
alive && kill -9 $ids
[ -z "$path" ] || rm -rf -- "$path"
"""


class Guard:
    """Ends processes and removes ``folder`` once this one has ended, however that came about.

    vLLM's engine does not notice that the process which started it was killed: it would keep its memory, and on a GPU
    leave none to the actor that is started next. The guard is a shell that waits for the end of a pipe. It asks first,
    so that vLLM removes its shared memory.
    """

    def __init__(self, folder: Path) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT.replace("TRIES", str(int(10 * _GRACE)))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends this process by its group must not end the guard
        )
        self._tell(f"remove {folder}")

    def hold(self, process_ids: Sequence[int]) -> None:
        """End these and no others."""
        self._tell(f"kill {' '.join(map(str, process_ids))}")

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Hold every process that `multiprocessing` starts meanwhile: a start takes long enough to be killed in it."""
        before, ended = set(multiprocessing.active_children()), threading.Event()

        def look() -> None:
            held: list[int] = []
            while not ended.wait(_EVERY):
                found = sorted(p.pid for p in multiprocessing.active_children() if p not in before and p.pid)
                if found != held:
                    self.hold(found)
                    held = found

        thread = threading.Thread(target=look, name="guard", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def close(self) -> None:
        """Let the processes live, and the folder be."""
        self._shell.kill()
        self._shell.communicate()

    def _tell(self, line: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{line}\n".encode())
        self._shell.stdin.flush()
