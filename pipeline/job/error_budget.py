"""How many dead letters a job may have."""

from pipeline.storage.commit.counts import Counts, most_frequent


class ErrorBudget:
    """How many dead letters a job may have: a share of its records, and a number."""

    def __init__(self, share: float, most: int | None, records: int) -> None:
        allowed = int(share * records + 1e-9)  # 0.29 of 100 is 28.999999999999996 in floating point
        self.allowed = allowed if most is None else min(allowed, most)
        self.rule = f"errors.max={most}" if self.allowed == most else f"errors.budget={share:g} of {records} records"

    def is_over(self, counted: Counts) -> bool:
        """Whether there are more dead letters."""
        return counted.dead > self.allowed

    def explain(self, counted: Counts) -> str:
        """The number of dead letters, what was allowed, and the most frequent kinds."""
        kinds = most_frequent(counted.errors, 5)
        return f"{counted.dead} dead letters, over {self.rule}: " + ", ".join(f"{n} {kind}" for kind, n in kinds)
