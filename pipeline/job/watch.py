"""Watch the markers of the running window: count its shards, and stop the job if it cannot go on."""

import threading
import time
from collections.abc import Callable

from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import CommittedRows
from pipeline.telemetry.incident_actor import Incident

from .error_budget import ErrorBudget
from .stop import StopKind, StopReason

SECONDS = 10.0  # between two looks at the markers
STALL_SECONDS = 300.0  # without a new shard


class Watch:
    """Counts the shards of one window in a thread while it runs; each marker is read once.

    ``before``: counts of the other windows. ``stop``: called once, if the budget is spent or ``store_refusals`` returns
    any. ``on_first_shard``: called once. ``on_counts``: called after each look. ``on_stall``: called each time that no
    shard was committed for `STALL_SECONDS`.
    """

    def __init__(
        self,
        markers: MarkerStore,
        window: int,
        before: Counts,
        budget: ErrorBudget,
        stop: Callable[[StopReason], None],
        store_refusals: Callable[[], list[Incident]] = list,
        *,
        on_first_shard: Callable[[], None] = lambda: None,
        on_counts: Callable[[Counts], None] = lambda counts: None,
        on_stall: Callable[[], None] = lambda: None,
    ) -> None:
        self.markers, self.window, self.budget, self.stop = markers, window, budget, stop
        self._on_first_shard, self._on_counts, self._on_stall = on_first_shard, on_counts, on_stall
        self._store_refusals = store_refusals
        self.counts = before
        self._seen: set[str] = set()
        self._committed = CommittedRows()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        is_committing, seen, since = False, 0, time.monotonic()
        while not self._end.wait(SECONDS if is_committing else SECONDS / 10):
            try:
                self.look()
                self._on_counts(self.counts)
                if self._seen and not is_committing:
                    self._on_first_shard()
                    is_committing = True
                if len(self._seen) > seen:
                    seen, since = len(self._seen), time.monotonic()
                elif time.monotonic() - since > STALL_SECONDS:
                    self._on_stall()
                    since = time.monotonic()
            except Exception:  # each store raises errors of its own; the next look may succeed
                continue
            if refusals := self._store_refusals():
                self.stop(StopReason(StopKind.STORE, str(refusals[0])))
                return
            if problem := self.budget.problem(self.counts):
                self.stop(StopReason(StopKind.BUDGET, problem))
                return

    def look(self) -> Counts:
        """Add the shards that were committed since the last look, and return the counts.

        A shard of a late writer that repeats rows of another shard is left out until its rows are cut.
        """
        for shard in self.markers.shards(self.window, self._seen):
            self._seen.add(shard.name)
            if len(self._committed.add(shard)) == len(shard.rows):
                self.counts += shard.counts
        return self.counts
