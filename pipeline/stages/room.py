"""Whether a cluster has what the stages ask for: Ray would wait for ever, and say so only in its logs."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..errors import UserError
from .settings import Pools, Share

_SHUFFLE_CPUS = 1.0  # of one task of Ray Data's own, between the pools


def check_room(pools: Pools, nodes: Sequence[dict[str, Any]]) -> None:
    """`UserError` where a stage asks for what none of Ray's ``nodes`` has, or the pools leave no CPU to the tasks.

    Nodes are as `ray.nodes` gives them.
    """
    for name in ("read", "route", "generate", "write"):
        share: Share = getattr(pools, name)
        if not any(_fits(share, node) for node in nodes):
            raise UserError(
                f"cluster: no node has what the {name} stage asks for, {_text(share)} (cluster.stages.{name});"
                f" there are {len(nodes)} node(s), with {_held(nodes)}"
            )
    asked = sum(share.cpus * share.actors for share in (pools.route, pools.generate))
    there = sum(node["Resources"].get("CPU", 0) for node in nodes)
    if asked + _SHUFFLE_CPUS > there:
        raise UserError(
            f"cluster: {pools.route.actors} routing and {pools.generate.actors} generating actor(s) ask for {asked:g}"
            f" CPUs, and the shuffle needs {_SHUFFLE_CPUS:g} beside them: there are {there:g} (engine.actors,"
            " cluster.stages; for a local Ray, cluster.cpus may be more than the machine has)"
        )
    gpus = sum(node["Resources"].get("GPU", 0) for node in nodes)
    if (pools.generate.gpus or 0) * pools.generate.actors > gpus:
        raise UserError(
            f"cluster: {pools.generate.actors} generating actors of {pools.generate.gpus:g} GPU need more than the"
            f" {gpus:g} there are (engine.actors, cluster.stages.generate)"
        )


def _fits(share: Share, node: dict[str, Any]) -> bool:
    resources: dict[str, float] = node["Resources"]
    labels: dict[str, str] = node.get("Labels") or {}
    return (
        resources.get("CPU", 0) >= share.cpus
        and resources.get("GPU", 0) >= (share.gpus or 0)
        and resources.get("memory", 0) >= share.memory
        and (share.accelerator is None or f"accelerator_type:{share.accelerator}" in resources)
        and all(_matches(labels.get(name), wanted) for name, wanted in share.labels.items())
    )


def _matches(value: str | None, wanted: str) -> bool:
    """Ray's label selectors: ``value``, ``!value``, ``in(a,b)``, ``!in(a,b)``."""
    negated, given = wanted.startswith("!"), wanted.removeprefix("!")
    values = given.removeprefix("in(").removesuffix(")").split(",") if given.startswith("in(") else [given]
    return (value in [v.strip() for v in values]) != negated


def _text(share: Share) -> str:
    asked = {f.name: getattr(share, f.name) for f in fields(share) if f.name not in ("actors", "most_actors")}
    return ", ".join(f"{name} {value}" for name, value in asked.items() if value)


def _held(nodes: Sequence[dict[str, Any]]) -> str:
    most = {name: max(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU", "memory")}
    kinds = sorted(
        {key.partition(":")[2] for node in nodes for key in node["Resources"] if key.startswith("accelerator_type")}
    )
    return f"at most {most['CPU']:g} CPUs, {most['GPU']:g} GPUs and {int(most['memory'])} bytes each" + (
        f", accelerators {', '.join(kinds)}" if kinds else ""
    )
