"""The Ray resources of each stage, and how many of its actors fit on a node."""

from dataclasses import dataclass, field, replace
from typing import Any

Node = dict[str, Any]
"""A node as `ray.nodes` returns it."""

_ROUNDING = 1e-6  # Ray counts to four digits, floats do not: 0.3 / 0.1 is less than 3


@dataclass(frozen=True)
class StageResources:
    """Resources that one task or actor of a stage reserves in Ray, and the size of the stage's actor pool.

    ``gpus``: None for 1 if the cluster has GPUs, else 0. ``memory``: bytes that Ray reserves, 0 for none.
    ``accelerator``: a type as Ray names it, such as ``A100``. ``labels``: node labels of ``ray start --labels``.
    The pool grows from ``min_actors`` to ``max_actors`` while work waits; 0: as many as fit the cluster.
    """

    cpus: float
    gpus: float | None = None
    memory: int = 0
    accelerator: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    min_actors: int = 1
    max_actors: int = 1

    @property
    def ray_options(self) -> dict[str, Any]:
        """The options of a Ray task or actor."""
        options: dict[str, Any] = {
            "num_gpus": self.gpus or None,
            "memory": self.memory or None,
            "accelerator_type": self.accelerator,
            "label_selector": dict(self.labels) or None,
        }
        return {"num_cpus": self.cpus} | {name: value for name, value in options.items() if value is not None}

    def max_actors_on(self, node: Node) -> int:
        """Return how many of the stage's tasks or actors fit on an otherwise empty node."""
        resources: dict[str, float] = node["Resources"]
        labels: dict[str, str] = node.get("Labels") or {}
        if self.accelerator is not None and f"accelerator_type:{self.accelerator}" not in resources:
            return 0
        if not all(_matches(labels.get(name), selector) for name, selector in self.labels.items()):
            return 0
        amounts = {"CPU": self.cpus, "memory": self.memory}
        limits = [_quotient(resources.get(name, 0), amount) for name, amount in amounts.items() if amount]
        return min([*limits, self.max_actors_by_gpus(node)] if self.gpus else limits)

    def max_actors_by_gpus(self, node: Node) -> int:
        """Return how many actors fit the node's GPUs alone; a fraction of a GPU is taken from a single one."""
        gpus = self.gpus or 0
        available: float = node["Resources"].get("GPU", 0)
        return int(available) * _quotient(1, gpus) if gpus < 1 else _quotient(available, gpus)

    def __str__(self) -> str:
        """The resources of one actor, for messages."""
        shown = {name: getattr(self, name) for name in ("cpus", "gpus", "memory", "accelerator", "labels")}
        return ", ".join(f"{name} {value}" for name, value in shown.items() if value)


@dataclass(frozen=True)
class Pools:
    """The resources of all stages.

    ``threads``: CPU threads of a generating actor, 0 for its share of the CPUs of its own node. ``actors_per_node``:
    maximum number of generating actors that Ray starts on a node; there are fewer where fewer fit.
    """

    read: StageResources
    route: StageResources
    generate: StageResources
    write: StageResources
    threads: int
    actors_per_node: int = 1

    @property
    def devices(self) -> dict[str, float]:
        """The number of generating actors and the GPUs of each, for run.json and the report."""
        return {"generate_actors": self.generate.min_actors, "gpus_each": self.generate.gpus or 0}

    def for_shards(self, shards: int) -> "Pools":
        """Return the pools with no more generating actors than there are shards: each has to load the model."""
        minimum, maximum = (min(actors, shards) for actors in (self.generate.min_actors, self.generate.max_actors))
        return replace(self, generate=replace(self.generate, min_actors=minimum, max_actors=maximum))

    def threads_on(self, node: Node) -> int:
        """Return the CPU threads of a generating actor on a node."""
        actors = min(self.generate.max_actors_on(node), self.actors_per_node)
        return self.threads or max(1, int(cpus_of(node) / max(1, actors)))


def cpus_of(node: Node) -> float:
    """Return the CPUs of a node; Ray omits resources that a node does not have."""
    return float(node["Resources"].get("CPU", 0))


def _quotient(available: float, amount: float) -> int:
    return int(available / amount + _ROUNDING)


def _matches(value: str | None, selector: str) -> bool:
    """Apply a label selector of Ray: ``value``, ``!value``, ``in(a,b)`` or ``!in(a,b)``."""
    negated, wanted = selector.startswith("!"), selector.removeprefix("!")
    values = wanted.removeprefix("in(").removesuffix(")").split(",") if wanted.startswith("in(") else [wanted]
    return (value in [v.strip() for v in values]) != negated
