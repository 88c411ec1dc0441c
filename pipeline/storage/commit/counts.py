"""Counts of committed rows: each marker holds the counts of its rows, and a run's counts are their sum."""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_MAX_MIXTURES = 1_000


@dataclass(frozen=True)
class Counts:
    """Counts of committed rows.

    ``mixtures``: rows of each of the 1,000 most frequent mixtures, since nearly every record may have one of its own;
    exact unless a mixture was rare in some part of the rows. ``rare``: rows of all other mixtures. ``last_assistant``:
    answered conversations that end with a turn of the assistant.
    """

    data: int = 0
    dead: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    fallback: int = 0
    last_assistant: int = 0
    mixtures: dict[str, int] = field(default_factory=dict)
    rare: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """The number of rows: answers and dead letters."""
        return self.data + self.dead

    def __add__(self, other: "Counts") -> "Counts":
        return sum_counts([self, other])

    def without_dead(self, errors: Mapping[str, int]) -> "Counts":
        """Subtract dead letters, given as their number by error type."""
        left = Counter(self.errors)
        left.subtract(errors)
        return replace(self, dead=self.dead - sum(errors.values()), errors=dict(+left))


def sum_counts(parts: Iterable[Counts]) -> Counts:
    """The sum of all parts."""
    sums: dict[str, Any] = {f.name: 0 if f.type is int else Counter() for f in fields(Counts)}
    for part in parts:
        for name, value in vars(part).items():
            if isinstance(value, dict):
                sums[name].update(value)
            else:
                sums[name] += value
        if len(sums["mixtures"]) > 2 * _MAX_MIXTURES:
            _keep_most_frequent(sums)
    _keep_most_frequent(sums)
    sums = {name: dict(value) if isinstance(value, Counter) else value for name, value in sums.items()}
    return Counts(**sums)


def count_rows(data: pa.Table, dead: pa.Table) -> Counts:
    """Count the rows of a data table and of a dead-letter table."""
    counts: dict[str, Any] = {}
    if data.num_rows:
        counts = {
            "prompt_tokens": int(data["prompt_tokens"].to_numpy().sum()),
            "completion_tokens": int(data["completion_tokens"].to_numpy().sum()),
            "fallback": int(data["fallback"].to_numpy().sum()),
            "last_assistant": pc.sum(data["last_assistant"]).as_py(),
            "mixtures": dict(Counter(data["mixture"].to_pylist())),
            "finish_reasons": dict(Counter(data["finish_reason"].to_pylist())),
        }
    errors = dict(Counter(dead["error_type"].to_pylist())) if dead.num_rows else {}
    return sum_counts([Counts(data=data.num_rows, dead=dead.num_rows, errors=errors, **counts)])


def most_frequent(counts: Mapping[str, int], limit: int) -> list[tuple[str, int]]:
    """The ``limit`` names with the highest counts, highest first, equal counts by name."""
    return heapq.nsmallest(limit, counts.items(), key=lambda item: (-item[1], item[0]))


def _keep_most_frequent(sums: dict[str, Any]) -> None:
    mixtures: Counter[str] = sums["mixtures"]
    if len(mixtures) > _MAX_MIXTURES:
        sums["mixtures"] = Counter(dict(most_frequent(mixtures, _MAX_MIXTURES)))
        sums["rare"] += mixtures.total() - sums["mixtures"].total()
