"""What goes wrong in tasks and actors, told to the driver: Ray drops a failed block, and its error with it."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.storage.store.objects import StoreError
from pipeline.storage.store.redact import masked, one_line

from .incident_actor import Notes

_STARTS = 3  # of one actor, each ended by the death of its process
_AT_START = ", at the start of an actor"


class Incidents:
    """Travels to tasks and actors, which note their errors with it. `listening` makes one that is heard.

    Notes are a help for people, and tell the driver why to stop. Where the actor that keeps them dies, those so far are
    lost.
    """

    def __init__(self, actor: Any = None) -> None:
        self._actor = actor

    @classmethod
    def listening(cls) -> "Incidents":
        """With an actor beside the driver, which a lost node does not take along."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return cls(ray.remote(Notes).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote())

    @contextmanager
    def telling(self, stage: str) -> Iterator[None]:
        """Note how long what runs inside takes, and its error, which goes on."""
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            self._note(f"{stage}: {type(error).__name__}: {masked(one_line(error))[:300]}")
            raise
        finally:
            if self._actor:
                with suppress(RayError):  # nobody waits for it either
                    self._actor.spend.remote(stage, time.monotonic() - start)

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

    def spent(self) -> dict[str, tuple[float, int]]:
        """Seconds that tasks and actors of each stage were busy, added up over all of them, and how many calls."""
        spent = (self._ask("spent") or {}) if self._actor else {}
        return {stage.replace(_AT_START, " start"): found for stage, found in spent.items()}

    def failed_starts(self) -> Counter[str]:
        """Those of actors that could not start, and how often."""
        return Counter({what: count for what, count in self.noted() if _AT_START in what})

    def refusals(self) -> list[str]:
        """What the store refused for good: other shards would fare no better."""
        return [what for what, _ in self.noted() if StoreError.__name__ in what]

    def _note(self, what: str) -> None:
        if self._actor:
            self._ask("note", what)

    def _ask(self, name: str, *args: Any) -> Any:
        with suppress(RayError):
            return ray.get(getattr(self._actor, name).remote(*args), timeout=30)
        return None
