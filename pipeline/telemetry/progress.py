"""How far a job is: what the watch over the markers saw, put together for people. It asks the store for nothing."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.storage.commit.counts import Counts

_RECENT = 60.0  # seconds that rates are taken over, at least two looks
_POINTS = 400  # of a timeline; beyond, every second one is dropped


@dataclass(frozen=True)
class Snapshot:
    """A job at one moment. ``window`` counts from 1; ``counts``: of all that is committed, also by earlier commands.

    ``done_before``: records that were committed when this command began. Rates are those of the last minute: records
    and generated tokens a second, None before the first look at this command's shards.
    """

    stage: str
    window: int
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
        return self.counts.data + self.counts.dead

    @property
    def eta(self) -> float | None:
        """Seconds until the last record, at the rate of the last minute."""
        if not self.records_per_second:
            return None
        return (self.records - self.done) / self.records_per_second

    @property
    def fallback_share(self) -> float:
        """Of the answered records, those of the base model alone."""
        return self.counts.fallback / max(1, self.counts.data)


Listener = Callable[[Snapshot], None]


@dataclass(frozen=True)
class Point:
    """What was committed at a moment: ``time`` in seconds since 1970."""

    time: float
    records: int
    dead: int
    tokens: int


class Progress:
    """Collects what happens in a job, from any thread; tells a listener at each stage and each look at the store."""

    def __init__(self, listener: Listener = lambda snapshot: None) -> None:
        """``listener``: called with the lock held, so one call at a time; it must not wait."""
        self._listener = listener
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._now = Snapshot("starting", 0, 0, 0, 0, Counts(), 0.0)
        self._recent: deque[tuple[float, Counts]] = deque()
        self.timeline: list[Point] = []

    def begin(self, records: int, windows: int, before: Counts) -> None:
        """The job's size is known, and what earlier commands have committed."""
        self._began = time.monotonic()
        self._recent.append((self._began, before))
        self._note(before)
        done = before.data + before.dead
        self._tell(records=records, windows=windows, counts=before, done_before=done)

    def stage(self, name: str, window: int | None = None) -> None:
        """Another stage has begun; ``window`` counts from 0."""
        self._tell(stage=name, **({} if window is None else {"window": window + 1}))

    def committed(self, counts: Counts, stage: str | None = None) -> None:
        """So much is committed now, which may be what was before; ``stage``: another one has begun with that."""
        now = time.monotonic()
        with self._lock:
            self._recent.append((now, counts))
            while len(self._recent) > 2 and now - self._recent[0][0] > _RECENT:
                self._recent.popleft()
            if counts != self._now.counts:
                self._note(counts)
        self._tell(counts=counts, **({} if stage is None else {"stage": stage}))

    def _tell(self, **changes: object) -> None:
        with self._lock:
            records, tokens = self._rates()
            seconds = time.monotonic() - self._began
            rates = {"records_per_second": records, "tokens_per_second": tokens, "seconds": seconds}
            self._now = replace(self._now, **{**changes, **rates})  # type: ignore[arg-type]
            self._listener(self._now)

    def _note(self, counts: Counts) -> None:
        """A point of the timeline. Between the last of an earlier command and the first of this one nothing is done."""
        self.timeline.append(Point(round(time.time(), 1), counts.data, counts.dead, counts.completion_tokens))
        if len(self.timeline) > _POINTS:
            self.timeline = [*self.timeline[:-1:2], self.timeline[-1]]

    def _rates(self) -> tuple[float | None, float | None]:
        if len(self._recent) < 2:
            return None, None
        (start, first), (end, last) = self._recent[0], self._recent[-1]
        seconds = max(end - start, 1e-9)
        done = last.data + last.dead - first.data - first.dead
        tokens = last.completion_tokens - first.completion_tokens
        return max(0, done) / seconds, max(0, tokens) / seconds
