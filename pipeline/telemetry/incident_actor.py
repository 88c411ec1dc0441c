"""An incident of a job, and the actor that counts them.

Its process lives as long as the job, so this module imports only the standard library.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass

START, RUN = "start", "run"
STORE_ERROR = "StoreError"
_MAX_KINDS = 100  # different incidents that are counted one by one


@dataclass(frozen=True)
class Incident:
    """An error in a task or an actor.

    ``phase``: ``start`` of an actor or ``run`` of a batch. ``error_type``: the class of the error; `STORE_ERROR` for
    every subclass of `StoreError`.
    """

    stage: str
    phase: str
    error_type: str
    message: str

    @property
    def is_failed_start(self) -> bool:
        """Whether an actor could not start."""
        return self.phase == START

    @property
    def is_store_refusal(self) -> bool:
        """Whether the store refused to take something, so that other shards would fail too."""
        return self.error_type == STORE_ERROR

    def __str__(self) -> str:
        where = f"{self.stage} actor could not start" if self.is_failed_start else self.stage
        return f"{where}: {self.error_type}: {self.message}"


_OTHERS = Incident("any", RUN, "others", f"more than {_MAX_KINDS} different incidents")


class IncidentCounter:
    """Counts incidents, unfinished starts of actors, and the seconds that each stage was busy; notes their threads."""

    def __init__(self) -> None:
        self._incidents: Counter[Incident] = Counter()
        self._unfinished_starts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._calls: Counter[str] = Counter()
        self._records: Counter[str] = Counter()
        self._threads: set[int] = set()

    def record(self, incident: Incident) -> None:
        """Count an incident; those that stop the job are never counted among the others."""
        is_counted = incident in self._incidents or len(self._incidents) < _MAX_KINDS
        stops_job = incident.is_store_refusal or incident.is_failed_start
        self._incidents[incident if is_counted or stops_job else _OTHERS] += 1

    def incidents(self) -> list[tuple[Incident, int]]:
        """Return incidents and how often each happened, the most frequent first."""
        return self._incidents.most_common()

    def begin_start(self, actor: str) -> int:
        """Count a start of an actor; return how many of its starts have not finished."""
        self._unfinished_starts[actor] += 1
        return self._unfinished_starts[actor]

    def finish_start(self, actor: str) -> None:
        """Forget the starts of an actor, which has started."""
        del self._unfinished_starts[actor]

    def add_threads(self, threads: int) -> None:
        """Note the number of threads of a generating actor."""
        self._threads.add(threads)

    def threads(self) -> list[int]:
        """Return the different numbers of threads, the smallest first."""
        return sorted(self._threads)

    def add_call(self, stage: str, seconds: float, records: int) -> None:
        """Add one call of a stage."""
        self._seconds[stage] += seconds
        self._calls[stage] += 1
        self._records[stage] += records

    def records_per_second(self, stage: str) -> float:
        """Return the speed of a stage within its calls; 0 before the first."""
        return self._records[stage] / self._seconds[stage] if self._records[stage] else 0.0

    def stage_seconds(self) -> dict[str, tuple[float, int]]:
        """Return the seconds of all calls of each stage, and the number of calls."""
        return {stage: (seconds, self._calls[stage]) for stage, seconds in self._seconds.items()}
