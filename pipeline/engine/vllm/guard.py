"""Processes that must not outlive this one."""

import subprocess
from collections.abc import Sequence


class Guard:
    """Kills processes once this one has ended, however that came about.

    vLLM's engine does not notice that the process which started it was killed: it would keep its memory, and on a GPU
    leave none to the actor that is started next. The guard is a shell that waits for the end of a pipe.
    """

    def __init__(self, process_ids: Sequence[int]) -> None:
        ids = " ".join(map(str, process_ids))
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", f"read _; kill -9 {ids}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # what ends this process by its group must not end the guard
        )

    def close(self) -> None:
        """Let the processes live."""
        self._shell.kill()
        self._shell.communicate()
