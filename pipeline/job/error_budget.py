"""The number of dead letters that a job may have."""

from pipeline.storage.commit.counts import Counts, most_frequent


class ErrorBudget:
    """The smaller of a share of the job's records and a number of dead letters (None: only the share counts)."""

    def __init__(self, share: float, max_errors: int | None, records: int) -> None:
        allowed = int(share * records + 1e-9)  # 0.29 of 100 is 28.999999999999996 in floating point
        self.allowed = allowed if max_errors is None else min(allowed, max_errors)
        by_share = f"errors.budget={share:g} of {records} records"
        self.rule = f"errors.max={max_errors}" if self.allowed == max_errors else by_share

    def problem(self, counts: Counts) -> str:
        """Return the number of dead letters, the rule, and the most frequent error types; empty within the budget."""
        if counts.dead <= self.allowed:
            return ""
        kinds = ", ".join(f"{n} {kind}" for kind, n in most_frequent(counts.errors, 5))
        return f"{counts.dead} dead letters, over {self.rule}: {kinds}"
