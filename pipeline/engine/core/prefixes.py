"""Prefix caching: the common beginning of prompts with one mixture runs once, and is copied into later slots."""

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b

from pipeline.engine.attention.slots import Buffers, SlotCache
from pipeline.engine.request import Request, slice_spans
from pipeline.engine.sequence import Sequence

BLOCK = 16  # tokens by which prefixes are compared
_MIN_BLOCKS = 2  # copying fewer costs what it saves
_BUDGET_FRACTION = 4  # prefixes hold at most a quarter of the cache's budget

Key = bytes
"""Digest of the token ids of a prefix, with the mixture of each."""


@dataclass(eq=False)
class Prefix:
    """Keys and values of a prefix; empty until the sequence that computes it has run all of its tokens."""

    keys: list[Key]
    parts: list[Buffers] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Number of tokens."""
        return len(self.keys) * BLOCK


def prefix_keys(request: Request) -> list[Key]:
    """Return a key for each whole block of a prompt without its last token: of all tokens up to the block's end.

    Keys are chained (each digest includes the one before), as in vLLM's prefix caching. Unlike there they include the
    mixture of each token: adapters change keys and values, so prefixes of other mixtures must never match.
    """
    digest, keys = b"", []
    for start in range(0, (len(request.tokens) - 1) // BLOCK * BLOCK, BLOCK):
        spans = slice_spans(request.prompt_spans, start, start + BLOCK)
        mixtures = [(offset, mixture.key) for offset, mixture in spans]
        block = repr((mixtures, [*map(int, request.tokens[start : start + BLOCK])]))
        digest = blake2b(digest + block.encode(), digest_size=16).digest()
        keys.append(digest)
    return keys


class PrefixStore:
    """Finds prefixes that waiting sequences share, and keeps them; the least recently used are evicted first.

    If not ``enabled``, it finds none. It is the `Evictable` of the cache whose sequences it serves.
    """

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled
        self._keys: dict[Sequence, list[Key]] = {}  # of waiting sequences
        self._waiting: Counter[Key] = Counter()
        self._kept: OrderedDict[Prefix, None] = OrderedDict()
        self._running: dict[Sequence, Prefix] = {}
        self._by_key: dict[Key, Prefix] = {}

    @property
    def positions(self) -> int:
        """Positions that prefixes hold, or will hold once they are computed."""
        return sum(prefix.length for prefix in self._kept) + sum(p.length for p in self._running.values())

    def add(self, seq: Sequence) -> None:
        """Add a waiting sequence."""
        self._keys[seq] = prefix_keys(seq.request) if self._enabled else []
        self._waiting.update(self._keys[seq])

    def must_wait(self, seq: Sequence) -> bool:
        """Whether a running sequence is computing a longer prefix of this one than is kept."""
        found = self._find(seq)
        return found is not None and not found[0].parts

    def admit(self, seq: Sequence, cache: SlotCache) -> None:
        """Copy the kept prefix of an admitted sequence into its slot, and choose the prefix it computes for others."""
        found = self._find(seq)
        keys = self._keys.pop(seq)
        for key in keys:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        if found and found[0].parts:  # it may have been evicted to make room for the sequence
            prefix, length = found
            assert seq.slot is not None
            seq.slot.fill(prefix.parts, length)
            seq.num_computed = length
            self._kept.move_to_end(prefix)
        shared = next((blocks for blocks in range(len(keys), 0, -1) if keys[blocks - 1] in self._waiting), 0)
        if shared < _MIN_BLOCKS or shared * BLOCK <= seq.num_computed or not self._make_room(shared * BLOCK, cache):
            return
        prefix = Prefix(keys[:shared])
        self._running[seq] = prefix
        for key in prefix.keys:
            self._by_key.setdefault(key, prefix)

    def update(self, seq: Sequence) -> None:
        """Keep the prefix that a sequence computes, if its tokens have run."""
        prefix = self._running.get(seq)
        if prefix is None or seq.num_computed < prefix.length:
            return
        assert seq.slot is not None
        prefix.parts = [(keys.clone(), values.clone()) for keys, values in seq.slot.views(prefix.length)]
        del self._running[seq]
        self._kept[prefix] = None

    def cancel(self, seq: Sequence) -> None:
        """Forget the prefix that a finished or preempted sequence has not computed."""
        prefix = self._running.pop(seq, None)
        if prefix is not None:
            self._forget(prefix)

    def evict_oldest(self) -> bool:
        """Free the least recently used prefix; False if there is none."""
        if not self._kept:
            return False
        prefix, _ = self._kept.popitem(last=False)
        self._forget(prefix)
        return True

    def _find(self, seq: Sequence) -> tuple[Prefix, int] | None:
        """Return the prefix that covers most of the prompt, and how many tokens of it."""
        keys = self._keys[seq]
        for blocks in range(len(keys), _MIN_BLOCKS - 1, -1):
            if keys[blocks - 1] in self._by_key:
                return self._by_key[keys[blocks - 1]], blocks * BLOCK
        return None

    def _make_room(self, positions: int, cache: SlotCache) -> bool:
        limit = cache.limit // _BUDGET_FRACTION
        while self.positions + positions > limit and self.evict_oldest():
            pass
        return self.positions + positions <= limit and cache.positions + positions <= cache.limit

    def _forget(self, prefix: Prefix) -> None:
        for key in prefix.keys:
            if self._by_key.get(key) is prefix:
                del self._by_key[key]
        for other in [*self._kept, *self._running.values()]:
            for key in other.keys:
                self._by_key.setdefault(key, other)
