"""What a job came to, and what `run.json` says of it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.storage.commit.counts import Counts


@dataclass(frozen=True)
class JobResult:
    """What a job came to. ``incomplete``: records without an answer or a dead letter."""

    records: int
    counts: Counts
    seconds: float
    generated_tokens: int  # by this command, without what an earlier one had committed
    incomplete: int
    over_budget: str  # what there is too much of, and of which errors; empty within the budget
    incidents: list[tuple[str, int]]  # what went wrong in tasks and actors, and how often; much of it was made good

    @property
    def ok(self) -> bool:
        """Every record is committed or set aside, within the error budget."""
        return not self.incomplete and not self.over_budget

    @property
    def told(self) -> dict[str, Any]:
        """Counts and incidents."""
        return {
            "counts": {"records": self.records, "incomplete": self.incomplete, **asdict(self.counts)},
            "incidents": [{"what": what, "times": times} for what, times in self.incidents],
        }

    def timings(self, driver: Mapping[str, float], stages: Mapping[str, tuple[float, int]]) -> dict[str, Any]:
        """Seconds of all, of the driver's phases, and of each stage's calls with their number."""
        return {
            "seconds": round(self.seconds, 2),
            "generated_tokens": self.generated_tokens,
            "tokens_per_second": round(self.generated_tokens / max(self.seconds, 1e-9), 1),
            "driver": {name: round(seconds, 2) for name, seconds in driver.items()},
            "stages": {
                stage: {"seconds": round(seconds, 2), "calls": calls}
                for stage, (seconds, calls) in sorted(stages.items())
            },
        }
