"""End vLLM's processes when this process ends, even if it is killed."""

import multiprocessing
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_EVERY = 0.05  # seconds between looks at what has been started
_GRACE = 5.0  # seconds from asking processes to end to killing them

# Each line holds the ids of the processes to end when the pipe closes; the last line counts. The id of a process that
# has ended may be reused, so only processes that are still alive are killed.
_SCRIPT = """
alive() { for id in $ids; do kill -0 "$id" && return 0; done; return 1; }
while read -r line; do ids=$line; done
alive && kill $ids
while alive && [ $((tries += 1)) -le TRIES ]; do sleep 0.1; done
alive && kill -9 $ids
"""


class Guard:
    """Ends processes once this process has ended, for any reason.

    vLLM's engine does not notice that its parent was killed: it would keep its memory, and a restarted actor on the
    same GPU would find none. The guard is a shell that waits until a pipe closes. It sends SIGTERM first, so that vLLM
    removes its shared memory.
    """

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT.replace("TRIES", str(int(10 * _GRACE)))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a signal to this process's group must not end the guard
        )

    def hold(self, process_ids: Sequence[int]) -> None:
        """Set the processes to end."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{' '.join(map(str, process_ids))}\n".encode())
        self._shell.stdin.flush()

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Hold every process that `multiprocessing` starts meanwhile: this process may be killed during a start."""
        before, is_started = set(multiprocessing.active_children()), threading.Event()

        def poll() -> None:
            held: list[int] = []
            while not is_started.wait(_EVERY):
                found = sorted(p.pid for p in multiprocessing.active_children() if p not in before and p.pid)
                if found != held:
                    self.hold(found)
                    held = found

        thread = threading.Thread(target=poll, name="guard", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_started.set()
            thread.join()

    def close(self) -> None:
        """End the guard; it leaves the processes alone."""
        self._shell.kill()
        self._shell.communicate()
