"""Schedule the tokens of the next pass: decoding sequences, chunks of prompts, and newly admitted sequences."""

from bisect import insort
from collections.abc import Iterable

from pipeline.engine.attention.slots import SlotCache
from pipeline.engine.sequence import Sequence
from pipeline.engine.settings import EngineSettings

from .prefixes import PrefixStore

_HEADROOM = 16  # free positions in a new slot, so that a sequence does not outgrow it at once

Scheduled = tuple[Sequence, int]
"""A sequence, and how many of its next tokens run."""


class Scheduler:
    """Continuous batching (Orca, OSDI 2022) with chunked prefill beside decoding (Sarathi, arXiv 2308.16369).

    Of the waiting sequences, the one with the longest prompt is admitted first, so that similar lengths run together;
    but none is overtaken more than ``max_waiting`` times. If the cache is full, the sequence that was admitted last is
    preempted: its tokens are kept and computed again later.

    ``min_free``: number of sequences that must be missing from a full batch before some are admitted. If decode steps
    are recorded, a pass with prompts is slow: few passes with many prompts are better than many with few.
    """

    def __init__(self, cache: SlotCache, prefixes: PrefixStore, settings: EngineSettings, min_free: int = 1) -> None:
        self.cache = cache
        self.prefixes = prefixes
        self.settings = settings
        self.min_free = min_free
        self.running: list[Sequence] = []  # in the order of admission
        self._waiting: list[Sequence] = []  # in the order of arrival
        self._preempted: list[Sequence] = []  # in the order of admission
        self._admissions = 0
        self._arrivals: dict[Sequence, int] = {}  # of waiting ones: the number of admissions at their arrival

    @property
    def wants_sequences(self) -> bool:
        """Whether another sequence should be added before the next pass."""
        return len(self._waiting) < self.settings.max_waiting

    @property
    def num_waiting(self) -> int:
        """Number of sequences without a slot."""
        return len(self._waiting) + len(self._preempted)

    @property
    def is_busy(self) -> bool:
        """Whether a sequence runs or waits."""
        return bool(self.running or self._waiting or self._preempted)

    def add(self, seq: Sequence) -> None:
        """Queue a sequence."""
        self._waiting.append(seq)
        self._arrivals[seq] = self._admissions
        self.prefixes.add(seq)

    def schedule(self) -> list[Scheduled]:
        """Choose the tokens of the next pass; never empty while the scheduler is busy."""
        for seq in [*self.running]:
            if seq.slot is not None:  # not preempted for an earlier sequence
                self._grow_slot(seq)
        budget = self.settings.prefill_tokens
        scheduled: list[Scheduled] = []
        for seq in self.running:
            uncomputed = seq.num_tokens - seq.num_computed
            is_decode = uncomputed == 1 and bool(seq.new_tokens)
            count = 1 if is_decode else min(uncomputed, budget)
            budget -= 0 if is_decode else count
            if count:
                scheduled.append((seq, count))
        max_running = self.settings.batch_size
        can_admit = len(self.running) + self.min_free <= max_running
        while can_admit and budget > 0 and len(self.running) < max_running and (admitted := self._admit()):
            count = min(admitted.num_tokens - admitted.num_computed, budget)
            budget -= count
            scheduled.append((admitted, count))
        self.cache.compact()
        return scheduled

    def expected_tokens(self) -> int:
        """Return how many tokens may still run if all sequences, also waiting ones, have one mixture; else 0."""
        seqs = [*self.running, *self._preempted, *self._waiting]
        if not seqs or any(seq.request.spans or seq.mixture != seqs[0].mixture for seq in seqs):
            return 0
        return sum(seq.num_tokens - seq.num_computed + seq.max_remaining for seq in seqs)

    def update(self, scheduled: Iterable[Scheduled]) -> None:
        """Record that the scheduled tokens have run."""
        for seq, count in scheduled:
            seq.num_computed += count
            self.prefixes.update(seq)

    def finish(self, seq: Sequence) -> None:
        """Take a sequence out of the batch and free its slot."""
        assert seq.slot is not None
        self.running.remove(seq)
        seq.slot.lane.release(seq.slot)
        seq.slot, seq.num_computed = None, 0
        self.prefixes.cancel(seq)

    def _admit(self) -> Sequence | None:
        """Admit the next sequence; None if none waits or the cache is full."""
        seq = self._next()
        if seq is None:
            return None
        headroom = min(_HEADROOM, seq.max_remaining)
        seq.slot = self.cache.allocate(seq.num_tokens + headroom) or self.cache.allocate(seq.num_tokens)
        if seq.slot is None:
            return None
        if seq.admission < 0:
            seq.admission = self._admissions
            self._admissions += 1
            self._waiting.remove(seq)
            del self._arrivals[seq]
        else:
            self._preempted.remove(seq)
        self.prefixes.admit(seq, self.cache)
        insort(self.running, seq, key=lambda s: s.admission)
        return seq

    def _next(self) -> Sequence | None:
        """Choose the next sequence: a preempted one, then one that waited long enough, then the longest prompt.

        Sequences are skipped while another one computes a prefix of theirs.
        """
        overdue = [
            seq for seq in self._waiting[:1] if self._admissions - self._arrivals[seq] >= self.settings.max_waiting
        ]
        by_length = sorted(self._waiting, key=lambda seq: -seq.num_tokens)
        candidates = self._preempted or [*overdue, *by_length]
        return next((seq for seq in candidates if not self.prefixes.must_wait(seq)), None)

    def _grow_slot(self, seq: Sequence) -> None:
        """Make the slot hold the next tokens; if the cache is full, preempt the youngest sequences, or this one."""
        assert seq.slot is not None
        headroom = min(_HEADROOM, seq.max_remaining)
        while (slot := self.cache.grow(seq.slot, seq.num_tokens, seq.num_tokens + headroom)) is None:
            youngest = self.running[-1]
            self.finish(youngest)
            insort(self._preempted, youngest, key=lambda s: s.admission)
            self.prefixes.add(youngest)
            if youngest is seq:
                return
        seq.slot = slot
