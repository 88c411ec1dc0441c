"""The text in which a request of vLLM carries its mixtures: in ``extra_args``, and as the salt of its prefix cache."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

KEY = "lora_mixtures"
"""The key in `SamplingParams.extra_args`, and in `VllmConfig.additional_config` of an engine that mixes adapters."""

AdapterWeights = tuple[tuple[int, float], ...]
"""Pairs of an adapter's number, which counts from 1 as vLLM's `lora_int_id`, and its weight."""


@dataclass(frozen=True)
class TokenMixtures:
    """The mixtures of a sequence, prompt and answer. ``starts``: the first token of each, sorted; the first is 0."""

    starts: tuple[int, ...]
    weights: tuple[AdapterWeights, ...]

    @cached_property
    def adapters(self) -> frozenset[int]:
        """Numbers of all adapters."""
        return frozenset(number for weights in self.weights for number, _ in weights)

    def within(self, first: int, stop: int) -> Iterator[tuple[int, int, AdapterWeights]]:
        """Yield first token, end and weights of each mixture among the tokens from ``first`` to ``stop``."""
        for index in range(bisect_right(self.starts, first) - 1, len(self.starts)):
            start = max(first, self.starts[index])
            end = min(stop, self.starts[index + 1]) if index + 1 < len(self.starts) else stop
            if start >= stop:
                return
            yield start, end, self.weights[index]


BASE = TokenMixtures((0,), ((),))
"""The base model alone."""


def encode(spans: Iterable[tuple[int, Mapping[int, float]]]) -> str:
    """Return the text of mixtures: each with its first token and the weights of adapters by number.

    Equal neighbours are joined, so that equal texts mean equal weights of all tokens, and the base model alone is
    the empty text.
    """
    rows: list[tuple[int, list[tuple[int, float]]]] = []
    for start, weights in spans:
        pairs = sorted(weights.items())
        if not rows or rows[-1][1] != pairs:
            rows.append((start, pairs))
    return json.dumps(rows, separators=(",", ":")) if any(pairs for _, pairs in rows) else ""


@lru_cache(maxsize=8192)  # requests with the same text share it; decoding again costs microseconds
def decode(text: str) -> TokenMixtures:
    """Inverse of `encode`."""
    if not text:
        return BASE
    rows = json.loads(text)
    weights = (tuple((int(number), float(weight)) for number, weight in pairs) for _, pairs in rows)
    return TokenMixtures(tuple(int(start) for start, _ in rows), tuple(weights))


def mixtures_of(params: Any) -> TokenMixtures:
    """Return the mixtures that vLLM's `SamplingParams` carry; `BASE` for None."""
    extra = params.extra_args if params is not None else None
    return decode(extra.get(KEY, "") if extra else "")
