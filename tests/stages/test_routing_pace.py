"""When a stream reads and routes, and when its pool of routing actors may grow."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.data import DataContext

from pipeline.stages.routing_pace import RoutingPace, keep_pace


def pool(given: int, at_once: int, size: int, in_flight: int, alive: int | None = None) -> SimpleNamespace:
    """A pool of Ray Data. ``given``, ``at_once``: tasks of one actor."""
    return SimpleNamespace(
        max_tasks_in_flight_per_actor=lambda: given,
        max_actor_concurrency=lambda: at_once,
        current_size=lambda: size,
        num_tasks_in_flight=lambda: in_flight,
        num_alive_actors=lambda: size if alive is None else alive,
    )


def started(
    engines: SimpleNamespace, shards: int, routers: SimpleNamespace, tables: int = 0, of_block: float | None = None
) -> str:
    """Names of the stages that may start a task. ``shards``, ``tables``: that wait for engines and for routers.

    ``of_block``: shards of a block so far, None before the first one.
    """
    stages: dict[str, list[Any]] = {"read": [], "route": [routers], "regroup": [], "generate": [engines], "commit": []}
    ops = {name: SimpleNamespace(get_autoscaling_actor_pools=lambda p=p: p) for name, p in stages.items()}
    waiting = {"route": tables, "generate": shards}
    topology = {
        Op(name, op, of_block): SimpleNamespace(total_enqueued_input_blocks=lambda n=name: waiting.get(n, 0))
        for name, op in ops.items()
    }
    pace = RoutingPace(DataContext(), topology, None)
    return " ".join(op.name for op in topology if pace.can_add_input(op))


class Op:
    """A stage that can be a key."""

    def __init__(self, name: str, op: SimpleNamespace, outputs: float | None) -> None:
        self.name, self.get_autoscaling_actor_pools = name, op.get_autoscaling_actor_pools
        self.metrics = SimpleNamespace(average_num_outputs_per_task=outputs if name == "regroup" else 1.0)


ALL, WITHOUT_ROUTE, BEHIND = (
    "read route regroup generate commit",
    "read regroup generate commit",
    "regroup generate commit",
)


@pytest.mark.parametrize(
    ("engines", "shards", "routers", "expected"),
    [
        (pool(4, 2, 3, 12), 12, pool(2, 1, 2, 0), BEHIND),  # enough
        (pool(4, 2, 3, 12), 11, pool(2, 1, 2, 1), ALL),
        (pool(4, 2, 3, 12), 11, pool(2, 1, 2, 2), WITHOUT_ROUTE),  # one task for each router: no growth
        (pool(4, 2, 3, 6), 0, pool(2, 1, 2, 2), WITHOUT_ROUTE),  # each engine has what it works on
        (pool(4, 2, 3, 5), 0, pool(2, 1, 2, 2), ALL),  # an engine waits: Ray Data may add routers
        (pool(4, 2, 3, 0, alive=0), 0, pool(2, 1, 2, 2), WITHOUT_ROUTE),  # engines start
        (pool(4, 2, 3, 0, alive=2), 0, pool(2, 1, 2, 2), WITHOUT_ROUTE),  # one still starts
        (pool(1, 2, 0, 0), 0, pool(2, 1, 0, 0), WITHOUT_ROUTE),  # no actor yet
    ],
)
def test_routing_follows_the_engines(
    engines: SimpleNamespace, shards: int, routers: SimpleNamespace, expected: str
) -> None:
    assert started(engines, shards, routers) == expected


def test_the_next_block_is_routed_while_one_waits() -> None:
    engines, routers = pool(4, 2, 3, 12), pool(2, 1, 2, 0)
    assert started(engines, 111, routers, of_block=100.0) == ALL
    assert started(engines, 112, routers, of_block=100.0) == BEHIND


def test_readers_follow_the_routers() -> None:
    engines, routers = pool(4, 2, 3, 5), pool(2, 1, 2, 2)
    assert started(engines, 0, routers, tables=3) == ALL
    assert started(engines, 0, routers, tables=4) == "route regroup generate commit"


def test_a_dataset_keeps_its_own_policies_and_its_actors() -> None:
    context, other = DataContext(), DataContext()
    keep_pace(context)
    assert RoutingPace in context.get_config("backpressure_policies.enabled")
    assert other.get_config("backpressure_policies.enabled") is None
    assert context.autoscaling_config.actor_pool_util_downscaling_threshold < 0
    assert other.autoscaling_config.actor_pool_util_downscaling_threshold > 0
