"""Route as fast as the engines answer: hold reading and routing while they have enough, add routers while they wait."""

from typing import Any

from ray.data import DataContext
from ray.data._internal.execution import backpressure_policy as backpressure
from ray.data.context import AutoscalingConfig

_NEVER = -1.0  # a utilisation that no pool is below


class RoutingPace(backpressure.BackpressurePolicy):  # type: ignore[misc]
    """A policy of Ray Data for a stream with two actor pools, the routing and the generating actors.

    Ray Data adds actors to a pool that was given almost twice as many tasks as it works on: as many as waiting tasks
    would take. By itself it would read and route on until the object store is full, and fill the cluster with routing
    actors in the first second.
    """

    def __init__(self, context: DataContext, topology: Any, resources: Any) -> None:
        super().__init__(context, topology, resources)
        pools = {op: pool for op in topology for pool in op.get_autoscaling_actor_pools()}
        (self._router, self._routers), (self._generator, self._engines) = pools.items()
        stages = list(topology)
        self._readers = stages[: stages.index(self._router)]
        self._splitter = stages[stages.index(self._generator) - 1]  # of blocks into shards

    def can_add_input(self, op: Any) -> bool:
        """Return whether a stage may start a task now."""
        if op is not self._router and op not in self._readers:
            return True
        # A block is routed and regrouped as a whole before its first shard comes: it has to begin a block ahead.
        if self._has_enough(self._generator, self._engines, self._splitter.metrics.average_num_outputs_per_task or 0):
            return False
        if op is not self._router:
            return not self._has_enough(self._router, self._routers)
        # With one task for each actor the pool works, but does not grow.
        return self._engines_wait() or self._routers.num_tasks_in_flight() < self._routers.current_size()

    def _has_enough(self, op: Any, pool: Any, ahead: float = 0) -> bool:
        """Return whether as many tasks wait for a pool as its actors are given, and some more."""
        waiting: int = self._topology[op].total_enqueued_input_blocks()
        return waiting >= int(pool.max_tasks_in_flight_per_actor()) * max(1, int(pool.current_size())) + ahead

    def _engines_wait(self) -> bool:
        """Return whether all engines run and some work on fewer shards than they could.

        An engine that still starts may need the CPUs that another routing actor would take.
        """
        engines = self._engines
        running: int = engines.num_alive_actors()
        if not running or running < engines.current_size():
            return False
        return bool(engines.num_tasks_in_flight() < engines.max_actor_concurrency() * running)


def keep_pace(context: DataContext) -> None:
    """Use the policy in a dataset, and keep the actors of its pools to its end: new ones would have to load again."""
    policies = [*backpressure.ENABLED_BACKPRESSURE_POLICIES, RoutingPace]
    context.set_config(backpressure.ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    context.autoscaling_config = AutoscalingConfig(actor_pool_util_downscaling_threshold=_NEVER)
