"""A look at the markers of the window in work, every few seconds: counts so far, and whether to go on."""

import threading
import time
from collections.abc import Callable

from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.log import CommitLog
from pipeline.storage.commit.markers import Answered

from .error_budget import ErrorBudget

SECONDS = 10.0
STILL = 300.0  # seconds without a new shard, after which it is looked for what the job waits for


class Watch:
    """Counts the shards of one window while it runs, in a thread of its own; each marker is read once.

    ``before``: counts of the other windows. ``over``: called once when the budget is spent, or when the store
    ``refused`` something; ``begun``: once when the first shard is seen; ``counting``: with the counts after each look;
    ``still``: each time that no shard was seen for `STILL` seconds.
    """

    def __init__(
        self,
        log: CommitLog,
        window: int,
        before: Counts,
        budget: ErrorBudget,
        over: Callable[[str], None],
        begun: Callable[[], None] = lambda: None,
        counting: Callable[[Counts], None] = lambda counted: None,
        refused: Callable[[], list[str]] = list,
        still: Callable[[], None] = lambda: None,
    ) -> None:
        self.log, self.window, self.budget, self.over, self.begun = log, window, budget, over, begun
        self.counting, self._refused, self._still = counting, refused, still
        self.counted = before
        self._seen: set[str] = set()
        self._answered = Answered()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="watch")

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        begun, seen, since = False, 0, time.monotonic()
        while not self._end.wait(SECONDS if begun else SECONDS / 10):
            try:
                self.look()
                self.counting(self.counted)
                if self._seen and not begun:
                    self.begun()
                    begun = True
                if len(self._seen) > seen:
                    seen, since = len(self._seen), time.monotonic()
                elif time.monotonic() - since > STILL:
                    self._still()
                    since = time.monotonic()
            except Exception:  # stores raise kinds of their own; a look may be missed
                continue
            if reasons := self._refused():
                self.over(reasons[0])
                return
            if self.budget.is_over(self.counted):
                self.over(self.budget.explain(self.counted))
                return

    def look(self) -> Counts:
        """Counts with the shards that were committed since the last look.

        Without those with rows that another one answers, of a writer that came late: they are not cut yet.
        """
        for shard in self.log.shards(self.window, self._seen):
            self._seen.add(shard.name)
            if len(self._answered.add(shard)) == len(shard.rows):
                self.counted += shard.counts
        return self.counted
