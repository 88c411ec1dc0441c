"""Counts of committed rows: each marker says those of its rows, and all are added up."""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow as pa

_MIXTURES = 1_000


@dataclass(frozen=True)
class Counts:
    """Counts of committed rows.

    ``mixtures``: rows of each of the most frequent mixtures, a thousand at most; ``rare``: rows of all others. A large
    bank may give nearly every record a mixture of its own: neither a driver nor `run.json` could hold them all. The
    count of a mixture is exact unless it was among the rare of a part.
    """

    data: int = 0
    dead: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fallback: int = 0
    mixtures: dict[str, int] = field(default_factory=dict)
    rare: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: "Counts") -> "Counts":
        return total([self, other])

    def without_dead(self, errors: Mapping[str, int]) -> "Counts":
        """Less some dead letters, given by their error types."""
        left = Counter(self.errors)
        left.subtract(errors)
        return replace(self, dead=self.dead - sum(errors.values()), errors=dict(+left))


def total(all_counts: Iterable[Counts]) -> Counts:
    """All of them together."""
    counts: dict[str, Any] = {f.name: 0 if f.type is int else Counter() for f in fields(Counts)}
    for one in all_counts:
        for name, value in vars(one).items():
            if isinstance(value, dict):
                counts[name].update(value)
            else:
                counts[name] += value
        if len(counts["mixtures"]) > 2 * _MIXTURES:
            _keep_most_frequent(counts)
    _keep_most_frequent(counts)
    counts = {name: dict(value) if isinstance(value, Counter) else value for name, value in counts.items()}
    return Counts(**counts)


def count_rows(data: pa.Table, dead: pa.Table) -> Counts:
    """Counts over the rows of two output tables."""
    if data.num_rows == 0:
        counted: dict[str, Any] = {}
    else:
        counted = {
            "prompt_tokens": int(data["prompt_tokens"].to_numpy().sum()),
            "completion_tokens": int(data["completion_tokens"].to_numpy().sum()),
            "fallback": int(data["fallback"].to_numpy().sum()),
            "mixtures": dict(Counter(data["mixture"].to_pylist())),
            "finish_reasons": dict(Counter(data["finish_reason"].to_pylist())),
        }
    errors = dict(Counter(dead["error_type"].to_pylist())) if dead.num_rows else {}
    return total([Counts(data=data.num_rows, dead=dead.num_rows, errors=errors, **counted)])


def most_frequent(counts: Mapping[str, int], most: int) -> list[tuple[str, int]]:
    """The names with the highest counts, those first; of equal ones by name."""
    return heapq.nsmallest(most, counts.items(), key=lambda item: (-item[1], item[0]))


def _keep_most_frequent(counts: dict[str, Any]) -> None:
    mixtures: Counter[str] = counts["mixtures"]
    if len(mixtures) > _MIXTURES:
        counts["mixtures"] = Counter(dict(most_frequent(mixtures, _MIXTURES)))
        counts["rare"] += mixtures.total() - counts["mixtures"].total()
