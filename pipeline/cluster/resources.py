"""What the stages ask of Ray."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class StageResources:
    """What one task or actor of a stage asks of Ray, and how many actors the stage has where it has some.

    ``memory``: bytes that Ray counts as taken, 0: not counted. ``accelerator``: a type as Ray names it, as ``A100``.
    ``labels``: of the nodes, as ``ray start --labels`` gives them. Between ``actors`` and ``max_actors`` a pool grows
    as work waits, and shrinks again; both 0: as many as the cluster has room for.
    """

    cpus: float = 0.25
    gpus: float | None = None
    memory: int = 0
    accelerator: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    actors: int = 1
    max_actors: int = 1

    @property
    def asked(self) -> dict[str, Any]:
        """The options of a task or an actor."""
        options: dict[str, Any] = {
            "num_gpus": self.gpus or None,
            "memory": self.memory or None,
            "accelerator_type": self.accelerator,
            "label_selector": dict(self.labels) or None,
        }
        return {"num_cpus": self.cpus} | {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Pools:
    """What each stage asks of Ray. ``threads``: CPU threads of a generating actor."""

    read: StageResources = StageResources()
    route: StageResources = StageResources(0.5)
    generate: StageResources = StageResources()
    write: StageResources = StageResources()
    threads: int = 1

    @property
    def devices(self) -> dict[str, float]:
        """What answers: generating actors, and GPUs or CPU threads of each; for run.json and the report."""
        generate = self.generate
        return {"generate_actors": generate.actors, "gpus_each": generate.gpus or 0, "threads_each": self.threads}
