"""Prompt prefixes that several requests of one mixture share: run once, then copied into their slots."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from pipeline.engine.attention.slots import Buffers, SlotCache
from pipeline.engine.request import Request
from pipeline.engine.sequence import Row
from pipeline.engine.spans import cut_spans, prompt_spans

BLOCK = 16  # tokens by which prefixes are compared
_SHORTEST = 2  # blocks: below, copying costs what it saves
_SHARE = 4  # at most a quarter of the budget holds prefixes

Key = bytes
"""Digest of the token ids of a prefix, and of the mixture of each."""


@dataclass(eq=False)
class Prefix:
    """Keys and values of a prefix; none as long as the row that runs it has not come to its end."""

    keys: Sequence[Key]
    parts: list[Buffers] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.keys) * BLOCK


def prefix_keys(request: Request) -> list[Key]:
    """A key for each whole block of a prompt but its last token: of all tokens up to the block's end.

    Keys are chained (each digest holds the one before), as in vLLM's prefix caching. Unlike there they hold mixtures,
    token by token: an adapter changes keys and values, so a prefix of another mixture must never be taken.
    """
    spans, digest, keys = prompt_spans(request), b"", []
    for start in range(0, (len(request.tokens) - 1) // BLOCK * BLOCK, BLOCK):
        mixtures = [(place, mixture.key) for place, mixture in cut_spans(spans, start, start + BLOCK)]
        block = repr((mixtures, [*map(int, request.tokens[start : start + BLOCK])]))
        digest = blake2b(digest + block.encode(), digest_size=16).digest()
        keys.append(digest)
    return keys


class PrefixStore:
    """Finds what waiting requests share, and keeps what was shared, the least recently used dropped first."""

    def __init__(self, cache: SlotCache) -> None:
        self.cache = cache
        cache.others, cache.reclaim = lambda: self.positions, self.drop_oldest
        self.saved_tokens = 0
        self._keys: dict[Row, list[Key]] = {}  # of rows that wait
        self._waiting: Counter[Key] = Counter()
        self._kept: OrderedDict[Prefix, None] = OrderedDict()
        self._running: dict[Row, Prefix] = {}
        self._places: dict[Key, Prefix] = {}

    @property
    def positions(self) -> int:
        """Positions that memory is held for, or will be once the rows that run them are there."""
        return sum(prefix.length for prefix in self._kept) + sum(p.length for p in self._running.values())

    def wait(self, row: Row) -> None:
        """Note a row that waits."""
        self._keys[row] = prefix_keys(row.request)
        self._waiting.update(self._keys[row])

    def must_wait(self, row: Row) -> bool:
        """Whether a row that runs now will soon leave more of this row's prompt than is kept."""
        prefix = self._find(row)
        return prefix is not None and not prefix[0].parts

    def admit(self, row: Row) -> None:
        """Fill the slot of an admitted row as far as its prompt is kept, and note what it shall leave to others."""
        found = self._find(row)
        keys = self._keys.pop(row)
        for key in keys:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
        if found and found[0].parts:  # what was ready before may have been dropped to make room for the row
            prefix, length = found
            assert row.slot is not None
            row.slot.fill(prefix.parts, length)
            row.done = length
            self.saved_tokens += length
            self._kept.move_to_end(prefix)
        shared = next((n for n in range(len(keys), 0, -1) if keys[n - 1] in self._waiting), 0)
        if shared < _SHORTEST or shared * BLOCK <= row.done or not self._make_room(shared * BLOCK):
            return
        prefix = Prefix(keys[:shared])
        self._running[row] = prefix
        for key in prefix.keys:
            self._places.setdefault(key, prefix)

    def advanced(self, row: Row) -> None:
        """Keep the row's prefix once its tokens have run."""
        prefix = self._running.get(row)
        if prefix is None or row.done < prefix.length:
            return
        assert row.slot is not None
        prefix.parts = [(keys.clone(), values.clone()) for keys, values in row.slot.views(prefix.length)]
        del self._running[row]
        self._kept[prefix] = None

    def left(self, row: Row) -> None:
        """Forget what a row was to leave: it has ended or was preempted."""
        prefix = self._running.pop(row, None)
        if prefix is not None:
            self._forget(prefix)

    def drop_oldest(self) -> bool:
        """Free the prefix that was used least recently; False where there is none."""
        if not self._kept:
            return False
        prefix, _ = self._kept.popitem(last=False)
        self._forget(prefix)
        return True

    def _find(self, row: Row) -> tuple[Prefix, int] | None:
        """The prefix that covers most of the row's prompt, and how many tokens of it."""
        keys = self._keys[row]
        for blocks in range(len(keys), _SHORTEST - 1, -1):
            if keys[blocks - 1] in self._places:
                return self._places[keys[blocks - 1]], blocks * BLOCK
        return None

    def _make_room(self, positions: int) -> bool:
        most = self.cache.limit // _SHARE
        while self.positions + positions > most and self.drop_oldest():
            pass
        return self.positions + positions <= most and self.cache.positions + positions <= self.cache.limit

    def _forget(self, prefix: Prefix) -> None:
        for key in prefix.keys:
            if self._places.get(key) is prefix:
                del self._places[key]
        for other in [*self._kept, *self._running.values()]:
            for key in other.keys:
                self._places.setdefault(key, other)
