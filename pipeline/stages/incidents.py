"""What goes wrong in tasks and actors, told to the driver: Ray drops a failed block, and its error with it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ..storage.files import one_line
from ..storage.secrets import masked
from .notes import Notes

_STARTS = 3  # of one actor, each ended by the death of its process
_AT_START = ", at the start of an actor"


class Incidents:
    """Travels to tasks and actors, which note their errors with it. `listening` makes one that is heard.

    Notes are a help for people: where the actor that keeps them is gone, they are lost, and nothing else.
    """

    def __init__(self, actor: Any = None) -> None:
        self._actor = actor

    @classmethod
    def listening(cls) -> "Incidents":
        """With an actor beside the driver, which a lost node does not take along."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return cls(ray.remote(Notes).options(num_cpus=0, scheduling_strategy=here).remote())

    @contextmanager
    def telling(self, stage: str) -> Iterator[None]:
        """Note an error of what runs inside, and let it go on."""
        try:
            yield
        except Exception as error:
            self._note(f"{stage}: {type(error).__name__}: {masked(one_line(error))[:300]}")
            raise

    @contextmanager
    def starting(self, stage: str) -> Iterator[None]:
        """The start of an actor. `RuntimeError` where its process has died several times in it.

        Ray starts an actor whose process dies again and again, but not one that raises.
        """
        with self.telling(f"{stage}{_AT_START}"):
            actor = ray.get_runtime_context().get_actor_id() if self._actor else None
            if self._actor and actor and (self._ask("begin", actor) or 0) > _STARTS:
                raise RuntimeError(f"the process of an actor died {_STARTS} times while it started (out of memory?)")
            yield
            if self._actor and actor:
                self._ask("end", actor)

    def noted(self) -> list[tuple[str, int]]:
        """What was noted, and how often, the most frequent first."""
        return (self._ask("noted") or []) if self._actor else []

    def failed_starts(self) -> list[str]:
        """Those of actors that could not start."""
        return [what for what, _ in self.noted() if _AT_START in what]

    def _note(self, what: str) -> None:
        if self._actor:
            self._ask("note", what)

    def _ask(self, name: str, *args: Any) -> Any:
        with suppress(RayError):
            return ray.get(getattr(self._actor, name).remote(*args), timeout=30)
        return None
