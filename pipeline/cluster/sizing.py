"""Fit the stages' actor pools to the nodes of the cluster, or name what the cluster lacks.

Ray Data spreads its actors (`DataContext.scheduling_strategy`): Ray starts one on each node that has resources for it,
then a second one. The resources that an actor reserves decide where it fits, not what it computes with: without a GPU
it reserves a fraction of a CPU, so that other stages fit beside it, and computes with its node's CPUs divided by the
actors there.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count

import ray

from pipeline.errors import UserError
from pipeline.telemetry.logs import log_event

from .resources import Node, Pools, StageResources, cpus_of

_SHUFFLE_CPUS = 1.0  # of one task of Ray Data's own, between the pools
_MORE = 0.01  # CPUs; Ray counts them to four digits


def size_pools(pools: Pools, autoscaling: bool = False, log: Callable[[str], None] = print) -> Pools:
    """Set the GPUs, number and threads of the generating actors from the cluster's nodes.

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
    if needed + _SHUFFLE_CPUS > available:
        yield (
            f"{pools.route.min_actors} routing and {pools.generate.min_actors} generating actor(s) need {needed:g}"
            f" CPUs and the shuffle {_SHUFFLE_CPUS:g} more, but the cluster has {available:g} (engine.actors,"
            " cluster.stages; for a local Ray, cluster.cpus may exceed the CPUs of the machine)"
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
    """Start one generating actor per GPU, else one per node that it fits, with the CPUs of the node as its threads.

    All actors have the same number of threads: on nodes of different sizes, that of the smallest node in use.
    """
    generate = pools.generate
    if generate.gpus is None:
        generate = replace(generate, gpus=1 if any(node["Resources"].get("GPU") for node in nodes) else 0)
    if not generate.gpus and not pools.threads:
        generate = _avoid_small_nodes(generate, pools, nodes)
    minimum = generate.min_actors or _default_actors(generate, pools, nodes)
    generate = replace(generate, min_actors=minimum, max_actors=max(minimum, generate.max_actors))
    return replace(pools, generate=generate, threads=pools.threads or _threads(generate, nodes))


def _default_actors(generate: StageResources, pools: Pools, nodes: Sequence[Node]) -> int:
    """Use every GPU, even if CPUs or memory do not suffice: `shortages` names that instead of idle GPUs."""
    fitting = [node for node in nodes if generate.max_actors_on(node)]
    if generate.gpus:
        return max(1, sum(map(generate.max_actors_by_gpus, fitting)))
    free = sum(map(cpus_of, nodes)) - _cpus_of_other_stages(pools)
    return max(1, min(len(fitting), int(free / generate.cpus)))


def _threads(generate: StageResources, nodes: Sequence[Node]) -> int:
    """Divide a node's CPUs by the actors that Ray starts there; if none fits yet, return the CPUs of one actor."""
    limits = [(cpus_of(node), limit) for node in nodes if (limit := generate.max_actors_on(node))]
    if not limits:
        return max(1, int(generate.cpus))
    actors = min(generate.max_actors, sum(limit for _, limit in limits))
    rounds = next(r for r in count(1) if sum(min(limit, r) for _, limit in limits) >= actors)
    return max(1, min(int(cpus / min(limit, rounds)) for cpus, limit in limits))


def _avoid_small_nodes(generate: StageResources, pools: Pools, nodes: Sequence[Node]) -> StageResources:
    """Reserve more CPUs than small nodes have, if all actors together then get more threads.

    A head of two CPUs beside eight nodes of 16 would leave each of nine actors two threads. A node is small if it has
    at most half the CPUs of the next larger one: an actor then reserves little more than half of its own node.
    """
    sizes = sorted(cpus_of(node) for node in nodes if generate.max_actors_on(node))
    actors = max(generate.min_actors, generate.max_actors)
    starts = [i for i, size in enumerate(sizes) if i == 0 or size >= 2 * sizes[i - 1]]
    first = max(
        (i for i in starts if len(sizes) - i >= actors),
        key=lambda i: int(sizes[i]) * (actors or len(sizes) - i),
        default=0,
    )
    if not first:
        return generate
    cpus = sizes[first - 1] + _MORE
    free = max(cpus_of(node) - (cpus if cpus_of(node) >= cpus else 0) for node in nodes)
    return replace(generate, cpus=cpus) if free >= _cpus_of_other_stages(pools) else generate


def _cpus_of_other_stages(pools: Pools) -> float:
    """CPUs of the routing actors and of one shuffle task, without which the job stands still."""
    return pools.route.cpus * pools.route.min_actors + _SHUFFLE_CPUS
