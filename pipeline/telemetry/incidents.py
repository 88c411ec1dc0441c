"""Errors of tasks and actors, reported to the driver: Ray Data drops a failed block together with its error."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.storage.store.objects import StoreError
from pipeline.storage.store.redact import masked_error

from .incident_actor import RUN, START, STORE_ERROR, Incident, IncidentCounter

_MAX_STARTS = 3  # of one actor, each ended by the death of its process


class Incidents:
    """Records errors and busy seconds of the tasks and actors that it is sent to.

    `with_actor` makes one whose records reach the driver; others record nothing. If the actor dies, its records are
    lost: they inform people, and tell the driver why to stop.
    """

    def __init__(self, actor: Any = None) -> None:
        self._actor = actor

    @classmethod
    def with_actor(cls) -> "Incidents":
        """Start the actor on the driver's node, so that the loss of another node does not end it."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return cls(ray.remote(IncidentCounter).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote())

    @contextmanager
    def recording(self, stage: str, phase: str = RUN, records: int = 0) -> Iterator[None]:
        """Record the duration of the block, its number of records, and its error, which is raised again."""
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            kind = STORE_ERROR if isinstance(error, StoreError) else type(error).__name__
            self._call("record", Incident(stage, phase, kind, masked_error(error)[:300]))
            raise
        finally:
            if self._actor:
                with suppress(RayError):  # not waited for
                    label = stage if phase == RUN else f"{stage} {phase}"
                    self._actor.add_call.remote(label, time.monotonic() - start, records)

    @contextmanager
    def recording_start(self, stage: str) -> Iterator[None]:
        """Record the start of an actor; `RuntimeError` if its process has died in it several times.

        Ray starts an actor again and again if its process dies, but not if its constructor raises.
        """
        with self.recording(stage, START):
            actor = ray.get_runtime_context().get_actor_id() if self._actor else None
            if actor and (self._call("begin_start", actor) or 0) > _MAX_STARTS:
                raise RuntimeError(f"its process died {_MAX_STARTS} times while it started (out of memory?)")
            yield
            if actor:
                self._call("finish_start", actor)

    def add_threads(self, threads: int) -> None:
        """Record the number of CPU threads that a generating actor computes with."""
        self._call("add_threads", threads)

    def threads(self) -> list[int]:
        """Return the different numbers of threads of the generating actors, the smallest first."""
        return self._call("threads") or []

    def counts(self) -> list[tuple[Incident, int]]:
        """Return incidents and how often each happened, the most frequent first."""
        return self._call("incidents") or []

    def stage_seconds(self) -> dict[str, tuple[float, int]]:
        """Return the busy seconds of all tasks and actors of each stage together, and the number of calls."""
        return self._call("stage_seconds") or {}

    def records_per_second(self, stage: str) -> float:
        """Return the speed of one task or actor of a stage; 0 before its first call has ended."""
        return self._call("records_per_second", stage) or 0.0

    def failures(self) -> int:
        """Return the number of errors, and of starts of generating actors."""
        starts = self.stage_seconds().get("generate start", (0.0, 0))[1]
        return starts + sum(times for _, times in self.counts())

    def failed_starts(self) -> Counter[Incident]:
        """Return the incidents of actors that could not start."""
        return Counter({incident: times for incident, times in self.counts() if incident.is_failed_start})

    def _call(self, method: str, *args: Any) -> Any:
        """Call the actor; None if there is none, or it does not answer."""
        if self._actor:
            with suppress(RayError):
                return ray.get(getattr(self._actor, method).remote(*args), timeout=30)
        return None
