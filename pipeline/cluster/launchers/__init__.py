"""Run a command as a job of a cluster. Each launcher is one module, found by the scheme of the cluster's address.

To add one: a module with a class like `Launcher`, an entry in `LAUNCHERS`, a test like tests/cluster/launchers.
"""

from collections.abc import Callable

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked

from .base import Attempt, Launcher
from .ray_jobs import RayJobs

__all__ = ["LAUNCHERS", "Attempt", "Launcher", "open_launcher"]

LAUNCHERS: dict[str, Callable[[str], Launcher]] = {"http": RayJobs, "https": RayJobs, "ray": RayJobs}
"""The launcher for each scheme; called with the whole address."""


def open_launcher(address: str) -> Launcher:
    """Connect to the cluster at ``address``; without a scheme it is ``http``.

    Raises `UserError` for a scheme without a launcher, and if the cluster cannot be reached.
    """
    scheme = address.partition("://")[0] if "://" in address else "http"
    if scheme not in LAUNCHERS:
        raise UserError(f"submit: {masked(address)}: no launcher for {scheme}://; there are {', '.join(LAUNCHERS)}")
    return LAUNCHERS[scheme](address)
