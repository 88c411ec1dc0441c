"""Exact match of the answers of runs, by group: the table that `jobs.evaluate --run` prints."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .metrics import Answer
from .text_metrics import exact_match


@dataclass(frozen=True)
class GroupAccuracy:
    """Records of a group that have a right answer, and how many outputs match it."""

    records: int
    right: int

    @property
    def accuracy(self) -> float:
        """Share of matching outputs."""
        return self.right / self.records


Accuracies = dict[str, GroupAccuracy]


def accuracy_by_group(answers: Iterable[Answer]) -> Accuracies:
    """Exact match of all answers, those to multiple choice too, by group."""
    matches: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        matches[answer.question.group].append(exact_match(answer.output, answer.question.reference))
    return {group: GroupAccuracy(len(found), int(sum(found))) for group, found in sorted(matches.items())}


def mean_accuracy(accuracies: Accuracies) -> float:
    """Mean over the groups, each with the same weight."""
    return sum(group.accuracy for group in accuracies.values()) / max(1, len(accuracies))


def accuracy_lines(runs: Mapping[str, Accuracies]) -> str:
    """A line for each group and one for their mean, a column for each run."""
    groups = sorted({group for accuracies in runs.values() for group in accuracies})
    width = max([len(group) for group in groups] + [11])
    lines = [f"{'exact match':{width}}  records  " + "  ".join(f"{url:>14}" for url in runs)]
    for group in groups:
        found = [accuracies.get(group) for accuracies in runs.values()]
        cells = "  ".join(f"{a.accuracy:>14.1%}" if a else f"{'-':>14}" for a in found)
        lines.append(f"{group:{width}}  {max(a.records for a in found if a):7d}  {cells}")
    means = "  ".join(f"{mean_accuracy(accuracies):>14.1%}" for accuracies in runs.values())
    return "\n".join([*lines, f"{'mean':{width}}  {'':7}  {means}"])
