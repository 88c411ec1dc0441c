"""Start Ray or connect to it, and see how many actors it has room for."""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import ray

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked_word
from pipeline.telemetry.logs import tell

from .capacity import Node, check_room, shortages
from .resources import Pools
from .sizing import place

# Ray 2.60 answers the first driver of a raylet only when the workers that it starts ahead have come up: should one of
# them die before, the driver waits for ever. Idle workers stay for the next stage or window: each takes two seconds of
# CPU to start, and Ray would end those beyond one a CPU after a second.
#
# Workers run as nice as everything else, not at 15: a pass of an engine on CPUs waits for its slowest thread, and each
# small process of the machine held one up.
LOCAL = {
    "prestart_worker_first_driver": False,
    "idle_worker_killing_time_threshold_ms": 60_000,
    "worker_niceness": 0,
}
_PROJECT = str(Path(__file__).resolve().parents[2])


def connect(address: str | None, cpus: int) -> str | None:
    """Connect to a running Ray, or start a local one with ``cpus`` CPUs (0: all of the machine).

    Returns the address of its dashboard, where it has one and this call connected to it.
    """
    if ray.is_initialized():
        return None
    # Else Ray 2.60 prints an error for every actor pool that can restart. RAY_BACKEND_LOG_LEVEL=info brings all back.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray Data starts an actor for them
    # Else Ray tries a task whose process the memory monitor ended for ever.
    os.environ.setdefault("RAY_task_oom_retries", "3")
    quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
    # Workers import this package: with an installed one this changes nothing.
    path = os.pathsep.join(filter(None, [_PROJECT, os.environ.get("PYTHONPATH")]))
    environment = {"env_vars": {"PYTHONPATH": path}}
    local = {"num_cpus": cpus or None, "include_dashboard": False, "_system_config": LOCAL}
    try:
        with _masked_entrypoint():
            context = ray.init(
                address=address or "local", runtime_env=environment, **({} if address else local), **quiet
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"cluster: no Ray at {address or 'this machine'}: {' '.join(str(error).split())}") from None
    _only_to_files(logging.getLogger("ray.data"))
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


@contextmanager
def _masked_entrypoint() -> Iterator[None]:
    """What Ray keeps as a job's command, which all who see the cluster see, is without passwords and signatures.

    Ray (2.60, and pinned) takes the process's own words by this function, and has no setting for it.
    """
    utils = ray._private.utils
    own = utils.get_entrypoint_name
    utils.get_entrypoint_name = lambda: shlex.join(map(masked_word, sys.orig_argv))
    try:
        yield
    finally:
        utils.get_entrypoint_name = own


def size_pools(pools: Pools, autoscaling: bool = False, say: Callable[[str], None] = print) -> Pools:
    """Fill in what depends on the cluster (`placing.place`).

    `UserError` where a stage asks for what no node has; where nodes may come later (``autoscaling``), that is said.
    """
    nodes = living_nodes()
    placed = place(pools, nodes)
    if not autoscaling:
        check_room(placed, nodes)
        return placed
    for problem in islice(shortages(placed, nodes), 1):
        say(f"cluster: {problem}; waiting for nodes of the autoscaler")
        tell("waiting for nodes", level=logging.WARNING, problem=problem)
    return placed


def living_nodes() -> list[Node]:
    """The nodes of the cluster that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def _only_to_files(logger: logging.Logger) -> None:
    """Failed shards are reported by the job and tried again; their tracebacks belong into Ray's log files."""
    for handler in logger.handlers:
        if type(handler).__name__ != "SessionFileHandler":
            handler.setLevel(logging.CRITICAL)
