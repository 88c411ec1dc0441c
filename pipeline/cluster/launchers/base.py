"""The interface of a launcher."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol


class Attempt(NamedTuple):
    """One job of a command that was submitted several times, with its status in the launcher's words."""

    job: str
    status: str


class Launcher(Protocol):
    """Submits a command to the cluster at ``address`` and follows the job. All methods raise `UserError`."""

    address: str

    def submit(self, entrypoint: str, name: str, environment: Mapping[str, str], working_dir: str | None) -> str:
        """Submit a command line under ``name``, unless its last attempt still runs; return the id of the job.

        ``environment``: variables for the job. ``working_dir``: a local folder to send along and run the command in.
        """

    def attempts(self, name: str) -> list[Attempt]:
        """Return the jobs that were submitted under ``name``, oldest first."""

    def status(self, job: str) -> str | None:
        """Return the status of a job; None if the cluster does not know the job."""

    def follow(self, job: str, write: Callable[[str], None]) -> None:
        """Pass the job's log to ``write`` from its beginning until the job ends."""

    def stop(self, job: str) -> None:
        """Ask the job to stop."""

    def exit_code(self, job: str) -> int:
        """Wait until the job ends; return the exit code of its command, 143 if it was stopped."""
