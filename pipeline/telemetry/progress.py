"""Progress of a job, from the counts of its shards as they are committed; it asks the store for nothing."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.storage.commit.counts import Counts

_RATE_SECONDS = 60.0  # span over which rates are taken; at least two updates
_MAX_POINTS = 400  # of a timeline; beyond, every second one is dropped


@dataclass(frozen=True)
class Snapshot:
    """A job at one moment.

    ``windows_done``: windows that are finished. ``counts``: of all that is committed, by earlier commands too.
    ``done_before``: records that were committed when this command started. Rates are per second over the last minute,
    None before the first update.
    """

    stage: str
    windows_done: int
    windows: int
    records: int
    done_before: int
    counts: Counts
    seconds: float
    records_per_second: float | None = None
    tokens_per_second: float | None = None

    @property
    def done(self) -> int:
        """Records that have an answer or a dead letter."""
        return self.counts.rows

    @property
    def eta(self) -> float | None:
        """Seconds until the last record, at the rate of the last minute."""
        if not self.records_per_second:
            return None
        return (self.records - self.done) / self.records_per_second

    @property
    def fallback_share(self) -> float:
        """Share of the answered records that got the fallback."""
        return self.counts.fallback / max(1, self.counts.data)


Listener = Callable[[Snapshot], None]


@dataclass(frozen=True)
class TimelinePoint:
    """Counts of the committed records at a moment; ``time``: seconds since 1970."""

    time: float
    records: int
    dead: int
    tokens: int


class JobProgress:
    """Collects the progress of a job from any thread, and calls a listener at each change.

    ``listener`` is called with a lock held, one call at a time, so it must not block.
    """

    def __init__(self, listener: Listener = lambda snapshot: None) -> None:
        self._listener = listener
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._snapshot = Snapshot("starting", 0, 0, 0, 0, Counts(), 0.0)
        self._recent: deque[tuple[float, Counts]] = deque()
        self.timeline: list[TimelinePoint] = []

    def start(self, records: int, windows: int, before: Counts) -> None:
        """Set the job's size, and the counts that earlier commands have committed."""
        self._started = time.monotonic()
        self._recent.append((self._started, before))
        self._add_point(before)
        done = before.rows
        self._change(records=records, windows=windows, counts=before, done_before=done)

    def set_stage(self, name: str) -> None:
        """Set the stage."""
        self._change(stage=name)

    def set_windows_left(self, windows: int) -> None:
        """Set the number of windows that are not finished."""
        self._change(windows_done=self._snapshot.windows - windows)

    def update(self, counts: Counts, stage: str | None = None) -> None:
        """Set the counts of all committed records, and the stage if it changed too."""
        now = time.monotonic()
        with self._lock:
            self._recent.append((now, counts))
            while len(self._recent) > 2 and now - self._recent[0][0] > _RATE_SECONDS:
                self._recent.popleft()
            if counts != self._snapshot.counts:
                self._add_point(counts)
        self._change(counts=counts, **({} if stage is None else {"stage": stage}))

    def _change(self, **changes: object) -> None:
        with self._lock:
            records, tokens = self._rates()
            seconds = time.monotonic() - self._started
            rates = {"records_per_second": records, "tokens_per_second": tokens, "seconds": seconds}
            self._snapshot = replace(self._snapshot, **{**changes, **rates})  # type: ignore[arg-type]
            self._listener(self._snapshot)

    def _add_point(self, counts: Counts) -> None:
        point = TimelinePoint(round(time.time(), 1), counts.data, counts.dead, counts.completion_tokens)
        self.timeline.append(point)
        if len(self.timeline) > _MAX_POINTS:
            self.timeline = [*self.timeline[:-1:2], self.timeline[-1]]

    def _rates(self) -> tuple[float | None, float | None]:
        if len(self._recent) < 2:
            return None, None
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        seconds = max(end - start, 1e-9)
        done = last.rows - first.rows
        tokens = last.completion_tokens - first.completion_tokens
        return max(0, done) / seconds, max(0, tokens) / seconds
