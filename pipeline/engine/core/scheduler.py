"""Which tokens run in the next pass: rows that decode, pieces of prompts, and requests that are admitted."""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.engine.attention.slots import SlotCache
from pipeline.engine.sequence import Row

from .prefixes import PrefixStore

_HEADROOM = 16  # new tokens that a slot should have room for, so that a row does not move at once

Work = tuple[Row, int]
"""A row, and how many of its next tokens run."""


@dataclass(frozen=True)
class Limits:
    """``rows`` at a time; ``prefill_tokens`` of prompts in one pass; ``look_ahead``: requests that may wait.

    ``admit_at``: rows that must be free before some are admitted. Where decode steps are recorded, those with prompts
    among them are slow ones: few with many prompts are better than many with few.
    """

    rows: int
    prefill_tokens: int
    look_ahead: int
    reuse_prefixes: bool = True
    admit_at: int = 1


class Scheduler:
    """Continuous batching (Orca, OSDI 2022) with prompts in chunks beside decoding rows (Sarathi, arXiv 2308.16369).

    Of the requests that wait, the longest prompt is admitted first, so that rows of like lengths run together; but
    none is overtaken more than ``look_ahead`` times. Where the cache is full, the row that was admitted last gives its
    slot up; its tokens are kept and run again later.
    """

    def __init__(self, cache: SlotCache, limits: Limits) -> None:
        self.cache = cache
        self.limits = limits
        self.prefixes = PrefixStore(cache)
        self.running: list[Row] = []  # by seniority
        self.preemptions = 0
        self._waiting: list[Row] = []  # in the order of arrival
        self._preempted: list[Row] = []  # by seniority
        self._admitted = 0
        self._overtaken: dict[Row, int] = {}  # number of admissions when the row came

    @property
    def has_room(self) -> bool:
        """Whether another request should be added before the next pass."""
        return len(self._waiting) < self.limits.look_ahead

    @property
    def waiting(self) -> int:
        """Requests that were added and hold no row now."""
        return len(self._waiting) + len(self._preempted)

    @property
    def is_busy(self) -> bool:
        """Whether a row runs or waits."""
        return bool(self.running or self._waiting or self._preempted)

    def add(self, row: Row) -> None:
        """Let a row wait."""
        self._waiting.append(row)
        self._overtaken[row] = self._admitted
        if self.limits.reuse_prefixes:
            self.prefixes.wait(row)

    def plan(self) -> list[Work]:
        """The next pass; not empty while the scheduler is busy."""
        for row in [*self.running]:
            if row.slot is not None:  # not preempted for a row before it
                self._keep_room(row)
        budget = self.limits.prefill_tokens
        work: list[Work] = []
        for row in self.running:
            left = row.total - row.done
            decodes = left == 1 and bool(row.new_tokens)
            count = 1 if decodes else min(left, budget)
            budget -= 0 if decodes else count
            if count:
                work.append((row, count))
        admits = len(self.running) + self.limits.admit_at <= self.limits.rows
        while admits and budget > 0 and len(self.running) < self.limits.rows and (admitted := self._admit()):
            count = min(admitted.total - admitted.done, budget)
            budget -= count
            work.append((admitted, count))
        self.cache.compact()
        return work

    def tokens_of_one_mixture(self) -> int:
        """Tokens that the rows may still run, if all of them, those that wait too, have one mixture; else 0."""
        rows = [*self.running, *self._preempted, *self._waiting]
        if not rows or any(row.request.spans or row.mixture != rows[0].mixture for row in rows):
            return 0
        return sum(row.total - row.done + row.budget for row in rows)

    def ran(self, work: Iterable[Work]) -> None:
        """Note that a pass ran."""
        for row, count in work:
            row.done += count
            self.prefixes.advanced(row)

    def leave(self, row: Row) -> None:
        """Take a row out of the batch; its slot is free."""
        assert row.slot is not None
        self.running.remove(row)
        self.cache.release(row.slot)
        row.slot, row.done = None, 0
        self.prefixes.left(row)

    def _admit(self) -> Row | None:
        """Give a slot to the row whose turn it is."""
        row = self._next()
        if row is None:
            return None
        headroom = min(_HEADROOM, row.budget)
        row.slot = self.cache.reserve(row.total + headroom) or self.cache.reserve(row.total)
        if row.slot is None:
            return None
        if row.seniority < 0:
            row.seniority = self._admitted
            self._admitted += 1
            self._waiting.remove(row)
            del self._overtaken[row]
        else:
            self._preempted.remove(row)
        if self.limits.reuse_prefixes:
            self.prefixes.admit(row)
        insort(self.running, row, key=lambda r: r.seniority)
        return row

    def _next(self) -> Row | None:
        """The row whose turn it is: preempted ones, then one that waited long enough, then the longest prompt.

        Rows are passed over while another runs a prefix of theirs.
        """
        late = [row for row in self._waiting[:1] if self._admitted - self._overtaken[row] >= self.limits.look_ahead]
        longest = sorted(self._waiting, key=lambda row: -row.total)
        for row in self._preempted or [*late, *longest]:
            if not (self.limits.reuse_prefixes and self.prefixes.must_wait(row)):
                return row
        return None

    def _keep_room(self, row: Row) -> None:
        """Make sure that the row's slot holds its next tokens; preempt the youngest rows, or itself, if it must be."""
        assert row.slot is not None
        headroom = min(_HEADROOM, row.budget)
        while (slot := self.cache.grow(row.slot, row.total, row.total + headroom)) is None:
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is row:
                return
        row.slot = slot

    def _preempt(self, row: Row) -> None:
        self.leave(row)
        self.preemptions += 1
        insort(self._preempted, row, key=lambda r: r.seniority)
        if self.limits.reuse_prefixes:
            self.prefixes.wait(row)
