"""Exact match of generated text and answer."""

import re
import string
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

_EDGES = string.punctuation + string.whitespace


@dataclass(frozen=True)
class GroupAccuracy:
    """Records of a group that have an answer, and how many outputs match it."""

    records: int
    right: int

    @property
    def accuracy(self) -> float:
        """Share of matching outputs."""
        return self.right / self.records


def normalised(text: str) -> str:
    """Lower case, runs of white space as one space, no punctuation at the ends."""
    return re.sub(r"\s+", " ", text).strip(_EDGES).lower()


def accuracy_by_group(rows: Iterable[tuple[str, str, str]]) -> dict[str, GroupAccuracy]:
    """Exact-match accuracy after `normalised`, of (group, output, answer) triples, by group."""
    matches: dict[str, list[bool]] = defaultdict(list)
    for group, output, answer in rows:
        matches[group].append(normalised(output) == normalised(answer))
    return {group: GroupAccuracy(len(m), sum(m)) for group, m in sorted(matches.items())}
