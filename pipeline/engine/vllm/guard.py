"""Processes that must not outlive this one."""

import multiprocessing
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_EVERY = 0.05  # seconds between looks at what has been started


class Guard:
    """Kills processes once this one has ended, however that came about.

    vLLM's engine does not notice that the process which started it was killed: it would keep its memory, and on a GPU
    leave none to the actor that is started next. The guard is a shell that waits for the end of a pipe.
    """

    def __init__(self) -> None:
        # The last line names those that are to be killed.
        script = 'while read -r line; do ids=$line; done; [ -z "$ids" ] || kill -9 $ids'
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends this process by its group must not end the guard
        )

    def hold(self, process_ids: Sequence[int]) -> None:
        """Kill these and no others."""
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{' '.join(map(str, process_ids))}\n".encode())
        self._shell.stdin.flush()

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
        """Let the processes live."""
        self._shell.kill()
        self._shell.communicate()
