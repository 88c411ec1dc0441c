"""Fit the stages' actor pools to the nodes of the cluster, or name what the cluster lacks.

Ray Data spreads its actors (`DataContext.scheduling_strategy`): Ray starts one on each node that has resources for it,
then a second one. The resources that an actor reserves decide where it fits, not what it computes with: without a GPU
it reserves a fraction of a CPU, so that other stages fit beside it, and computes with its own node's CPUs divided by
the actors there. Nodes may differ: an actor on a small one has fewer threads, and gets fewer shards.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count

import ray

from pipeline.errors import UserError
from pipeline.telemetry.logs import log_event

from .resources import Node, Pools, StageResources, cpus_of


def size_pools(pools: Pools, autoscaling: bool = False, log: Callable[[str], None] = print) -> Pools:
    """Set the GPUs and number of generating actors, and the maximum of routing actors, from the cluster's nodes.

    Raises `UserError` if a stage needs resources that no node has. With ``autoscaling``, such nodes may start later:
    the first shortage is logged instead.
    """
    nodes = alive_nodes()
    sized = _sized(pools, nodes)
    problem = next(shortages(sized, nodes), None)
    if problem is not None:
        if not autoscaling:
            raise UserError(f"cluster: {problem}")
        log(f"cluster: {problem}; waiting for nodes of the autoscaler")
        log_event("waiting for nodes", level=logging.WARNING, problem=problem)
    return sized


def alive_nodes() -> list[Node]:
    """Return the nodes of the cluster that are alive."""
    return [node for node in ray.nodes() if node["Alive"]]


def threads_here(pools: Pools) -> int:
    """Return the CPU threads of a generating actor; called in the actor, whose node may have joined late."""
    here = ray.get_runtime_context().get_node_id()
    return pools.threads_on(next(node for node in alive_nodes() if node["NodeID"] == here))


def shortages(pools: Pools, nodes: Sequence[Node]) -> Iterator[str]:
    """Yield a sentence for each stage that does not fit these nodes; Ray itself would wait for ever."""
    for name in ("read", "route", "generate", "write"):
        stage: StageResources = getattr(pools, name)
        if not any(stage.max_actors_on(node) for node in nodes):
            yield (
                f"no node has what the {name} stage needs: {stage} (cluster.stages.{name});"
                f" there are {len(nodes)} node(s) with {_largest(nodes)}"
            )
    needed = sum(stage.cpus * stage.min_actors for stage in (pools.route, pools.generate))
    available = sum(map(cpus_of, nodes))
    if needed + _task_cpus(pools) > available:
        yield (
            f"{pools.route.min_actors} routing and {pools.generate.min_actors} generating actor(s) need {needed:g}"
            f" CPUs and the tasks between them {_task_cpus(pools):g} more, but the cluster has {available:g}"
            " (engine.actors, cluster.stages; for a local Ray, cluster.cpus may exceed the CPUs of the machine)"
        )
    for name, verb, settings in (("route", "routing", ""), ("generate", "generating", "engine.actors, ")):
        stage = getattr(pools, name)
        limit = sum(stage.max_actors_on(node) for node in nodes)
        if 0 < limit < stage.min_actors:
            yield (
                f"only {limit} of the {stage.min_actors} {verb} actors that must start fit the cluster; each needs"
                f" {stage} ({settings}cluster.stages.{name})"
            )


def _largest(nodes: Sequence[Node]) -> str:
    largest = {name: max(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU", "memory")}
    types = sorted(
        {key.partition(":")[2] for node in nodes for key in node["Resources"] if key.startswith("accelerator_type")}
    )
    return f"at most {largest['CPU']:g} CPUs, {largest['GPU']:g} GPUs and {int(largest['memory'])} bytes each" + (
        f", accelerators {', '.join(types)}" if types else ""
    )


def _sized(pools: Pools, nodes: Sequence[Node]) -> Pools:
    """Start one generating actor per GPU, else one per node that it fits."""
    generate = pools.generate
    if generate.gpus is None:
        generate = replace(generate, gpus=1 if any(node["Resources"].get("GPU") for node in nodes) else 0)
    minimum = generate.min_actors or _default_actors(generate, pools, nodes)
    generate = replace(generate, min_actors=minimum, max_actors=max(minimum, generate.max_actors))
    pools = replace(pools, generate=generate, actors_per_node=_actors_per_node(generate, nodes))
    return pools if pools.route.max_actors else replace(pools, route=_growing_route(pools, nodes))


def _growing_route(pools: Pools, nodes: Sequence[Node]) -> StageResources:
    """Let the routing pool grow to the CPUs that no engine takes, now or later.

    A fixed number of engines has its CPUs before the routing pool grows; a routing actor computes with a whole core,
    whatever it reserves. A growing number needs CPUs of nodes that may join later: then the routing pool grows only if
    its labels keep it off the nodes of engines, and Ray Data stops at the CPUs that there are.
    """
    route, generate = pools.route, pools.generate
    fitting = [node for node in nodes if route.max_actors_on(node)]
    if generate.min_actors == generate.max_actors:
        free = sum(map(cpus_of, fitting)) - generate.cpus * generate.max_actors - _task_cpus(pools)
        maximum = int(free / max(1.0, route.cpus))
    else:
        apart = route.labels and not any(map(generate.max_actors_on, fitting))
        maximum = generate.max_actors if apart else 0
    return replace(route, max_actors=max(route.min_actors, maximum))


def _default_actors(generate: StageResources, pools: Pools, nodes: Sequence[Node]) -> int:
    """Use every GPU, even if CPUs or memory do not suffice: `shortages` names that instead of idle GPUs."""
    fitting = [node for node in nodes if generate.max_actors_on(node)]
    if generate.gpus:
        return max(1, sum(map(generate.max_actors_by_gpus, fitting)))
    free = sum(map(cpus_of, nodes)) - _cpus_of_other_stages(pools)
    return max(1, min(len(fitting), int(free / generate.cpus)))


def _actors_per_node(generate: StageResources, nodes: Sequence[Node]) -> int:
    """Return how many actors Ray starts on a node: a second one only when each node that fits has one.

    If nodes have to join before all actors fit, those may take as many as fit.
    """
    limits = [generate.max_actors_on(node) for node in nodes]
    if sum(limits) < generate.max_actors:
        return generate.max_actors
    return next(r for r in count(1) if sum(min(limit, r) for limit in limits) >= generate.max_actors)


def _cpus_of_other_stages(pools: Pools) -> float:
    """CPUs of the routing actors and of the tasks beside them."""
    return pools.route.cpus * pools.route.min_actors + _task_cpus(pools)


def _task_cpus(pools: Pools) -> float:
    """CPUs of one task of each stage without actors: Ray Data reserves them for the first stages of a stream first.

    With fewer, later stages would wait until the earlier ones have ended.
    """
    return 2 * pools.read.cpus + pools.write.cpus  # reading, regrouping and committing
