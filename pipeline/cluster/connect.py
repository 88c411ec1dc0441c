"""Start a local Ray or connect to a running one."""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked_word

# Ray 2.60 answers the first driver only after its prestarted workers are up, and never if one of them dies. Idle
# workers are kept for the next stage or window: a start costs two seconds of CPU, and Ray would end all but one per CPU
# after a second. Workers run at normal priority instead of nice 15: a pass of an engine on CPUs waits for its slowest
# thread, which any small process of the machine would delay.
LOCAL = {
    "prestart_worker_first_driver": False,
    "idle_worker_killing_time_threshold_ms": 60_000,
    "worker_niceness": 0,
}
_ENVIRONMENT = {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray 2.60 prints an error for every actor pool that can restart; "info" for all
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray Data starts an actor for them
    "RAY_task_oom_retries": "3",  # by default Ray retries without end after the memory monitor ended a task
}
_PROJECT = str(Path(__file__).resolve().parents[2])


def connect(address: str | None, cpus: int) -> str | None:
    """Connect to the Ray at ``address``, or start a local one with ``cpus`` CPUs (0: all of the machine).

    Returns the URL of its dashboard; None if it has none or the process was connected already. Raises `UserError` if
    there is no Ray at the address.
    """
    if ray.is_initialized():
        return None
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Workers import this package; an installed one does not need the path.
    path = os.pathsep.join(filter(None, [_PROJECT, os.environ.get("PYTHONPATH")]))
    local = {"num_cpus": cpus or None, "include_dashboard": False, "_system_config": LOCAL}
    try:
        with _masked_entrypoint():
            context = ray.init(
                address=address or "local",
                runtime_env={"env_vars": {"PYTHONPATH": path}},
                logging_level=logging.ERROR,
                log_to_driver=False,
                **({} if address else local),
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cluster: no Ray at {address or 'this machine'}: {' '.join(str(error).split())}") from None
    # Tracebacks of failed shards stay in Ray's log files: the job reports and retries these shards itself.
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__name__ != "SessionFileHandler":
            handler.setLevel(logging.CRITICAL)
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def count_gpus(address: str | None, cpus: int, log: Callable[[str], None]) -> float:
    """Return the number of GPUs of the Ray at ``address`` or of the one in use; else of this machine, without Ray.

    ``log`` gets the dashboard's address. Raises `UserError` if there is no Ray at the address.
    """
    if address is None and not ray.is_initialized():
        import torch

        return torch.cuda.device_count()
    dashboard = connect(address, cpus)
    if dashboard:
        log(f"dashboard  {dashboard}")
    return float(ray.cluster_resources().get("GPU", 0))


@contextmanager
def _masked_entrypoint() -> Iterator[None]:
    """Mask credentials in the command that Ray records for the job and shows to everyone on the cluster.

    Ray has no setting for it. The pinned 2.60 reads the command line with this function.
    """
    utils = ray._private.utils
    original = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: shlex.join(map(masked_word, sys.orig_argv))
    try:
        yield
    finally:
        utils.get_entrypoint_name = original
