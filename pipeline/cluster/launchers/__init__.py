"""Run a command as a job of a cluster. Each launcher is one module, found by the scheme of the cluster's address.

To add one: a module with a class like `Launcher`, an entry in `LAUNCHERS`, a test like tests/cluster/launchers.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked

from .ray_jobs import RayJobs


class Launcher(Protocol):
    """Submits a command to the cluster at ``address`` and follows the job. All methods raise `UserError`."""

    address: str

    def submit(self, entrypoint: str, name: str, environment: Mapping[str, str], working_dir: str | None) -> str:
        """Submit a command line under ``name``, unless its last attempt still runs; return the id of the job.

        ``environment``: variables for the job. ``working_dir``: a local folder to send along and run the command in.
        """

    def attempts(self, name: str) -> list[tuple[str, str]]:
        """Return id and status of each job that was submitted under ``name``, oldest first."""

    def status(self, job: str) -> str | None:
        """Return the status of a job, in the launcher's words; None if the cluster does not know the job."""

    def follow(self, job: str, write: Callable[[str], None]) -> None:
        """Pass the job's log to ``write`` from its beginning until the job ends."""

    def stop(self, job: str) -> None:
        """Ask the job to stop."""

    def exit_code(self, job: str) -> int:
        """Wait until the job ends; return the exit code of its command, 143 if it was stopped."""


LAUNCHERS: dict[str, Callable[[str], Launcher]] = {"http": RayJobs, "https": RayJobs, "ray": RayJobs}
"""The launcher for each scheme; called with the whole address."""


def open_launcher(address: str) -> Launcher:
    """Connect to the cluster at ``address``, by default with ``http``; `UserError` if that is not possible."""
    scheme = address.partition("://")[0] if "://" in address else "http"
    if scheme not in LAUNCHERS:
        raise UserError(f"submit: {masked(address)}: no launcher for {scheme}://; there are {', '.join(LAUNCHERS)}")
    return LAUNCHERS[scheme](address)
