"""Whether a cluster has what the stages ask for: Ray would wait for ever, and say so only in its logs."""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from pipeline.errors import UserError

from .resources import Pools, StageResources

Node = dict[str, Any]
"""A node as `ray.nodes` gives it."""

SHUFFLE_CPUS = 1.0
"""Of one task of Ray Data's own, between the pools."""

_EXACT = 1e-6  # what Ray counts is exact to four digits, quotients of floats are not: 0.3 / 0.1 is less than 3


def check_room(pools: Pools, nodes: Sequence[Node]) -> None:
    """`UserError` where a stage asks for what none of Ray's ``nodes`` has, or the pools leave no CPU to the tasks."""
    for problem in shortages(pools, nodes):
        raise UserError(f"cluster: {problem}")


def shortages(pools: Pools, nodes: Sequence[Node]) -> Iterator[str]:
    """What the stages ask for and these nodes cannot take, a sentence each."""
    for name in ("read", "route", "generate", "write"):
        share: StageResources = getattr(pools, name)
        if not any(places(share, node) for node in nodes):
            yield (
                f"no node has what the {name} stage asks for, {_text(share)} (cluster.stages.{name});"
                f" there are {len(nodes)} node(s), with {_held(nodes)}"
            )
    asked = sum(share.cpus * share.actors for share in (pools.route, pools.generate))
    there = sum(map(cpus_of, nodes))
    if asked + SHUFFLE_CPUS > there:
        yield (
            f"{pools.route.actors} routing and {pools.generate.actors} generating actor(s) ask for {asked:g}"
            f" CPUs, and the shuffle needs {SHUFFLE_CPUS:g} beside them: there are {there:g} (engine.actors,"
            " cluster.stages; for a local Ray, cluster.cpus may be more than the machine has)"
        )
    for name, doing, settings in (("route", "routing", ""), ("generate", "generating", "engine.actors, ")):
        share = getattr(pools, name)
        room = sum(places(share, node) for node in nodes)
        if 0 < room < share.actors:
            yield (
                f"there is room for {room} of the {share.actors} {doing} actors that must start, each of which asks"
                f" for {_text(share)} ({settings}cluster.stages.{name})"
            )


def places(share: StageResources, node: Node) -> int:
    """How many tasks or actors of a share a node takes when nothing else is on it."""
    resources: dict[str, float] = node["Resources"]
    labels: dict[str, str] = node.get("Labels") or {}
    if share.accelerator is not None and f"accelerator_type:{share.accelerator}" not in resources:
        return 0
    if not all(_matches(labels.get(name), wanted) for name, wanted in share.labels.items()):
        return 0
    asked = {"CPU": share.cpus, "memory": share.memory}
    room = [_times(resources.get(name, 0), amount) for name, amount in asked.items() if amount]
    return min([*room, gpu_places(share.gpus, node)] if share.gpus else room)


def gpu_places(gpus: float, node: Node) -> int:
    """As `places`, by the GPUs alone. Less than one is taken of a single GPU."""
    held: float = node["Resources"].get("GPU", 0)
    return int(held) * _times(1, gpus) if gpus < 1 else _times(held, gpus)


def cpus_of(node: Node) -> float:
    """CPUs of a node; Ray leaves out what a node has none of."""
    return float(node["Resources"].get("CPU", 0))


def _times(held: float, asked: float) -> int:
    return int(held / asked + _EXACT)


def _matches(value: str | None, wanted: str) -> bool:
    """Ray's label selectors: ``value``, ``!value``, ``in(a,b)``, ``!in(a,b)``."""
    negated, given = wanted.startswith("!"), wanted.removeprefix("!")
    values = given.removeprefix("in(").removesuffix(")").split(",") if given.startswith("in(") else [given]
    return (value in [v.strip() for v in values]) != negated


def _text(share: StageResources) -> str:
    asked = {f.name: getattr(share, f.name) for f in fields(share) if f.name not in ("actors", "max_actors")}
    return ", ".join(f"{name} {value}" for name, value in asked.items() if value)


def _held(nodes: Sequence[Node]) -> str:
    most = {name: max(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU", "memory")}
    kinds = sorted(
        {key.partition(":")[2] for node in nodes for key in node["Resources"] if key.startswith("accelerator_type")}
    )
    return f"at most {most['CPU']:g} CPUs, {most['GPU']:g} GPUs and {int(most['memory'])} bytes each" + (
        f", accelerators {', '.join(kinds)}" if kinds else ""
    )
