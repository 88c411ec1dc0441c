"""Figures with their intervals: each metric for each task and configuration, and its mean over the tasks."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import BootstrapSettings, interval, resampled
from .metrics import Answer, Metric
from .text_metrics import Floats

Groups = dict[str, dict[str, list[Answer]]]


@dataclass(frozen=True)
class Estimate:
    """A figure, 0 to 100, and its interval. ``group``: the task; None for the mean over tasks."""

    configuration: str
    metric: str
    group: str | None
    records: int
    value: float
    low: float
    high: float


_Resampled = tuple[Estimate, Floats]


def estimates(answers: Iterable[Answer], metrics: Sequence[Metric], settings: BootstrapSettings) -> list[Estimate]:
    """Every figure that there are answers for, those of the tasks before their mean.

    The mean gives each task the same weight, however many records it has; its interval comes from resampling within
    the tasks.
    """
    tasks: dict[tuple[str, str], list[_Resampled]] = defaultdict(list)
    for group, configurations in sorted(_grouped(answers).items()):
        for metric in metrics:
            for configuration, given in configurations.items():
                tasks[metric.name, configuration] += _of_group(metric, group, configuration, given, settings)
    return [estimate for parts in tasks.values() if parts for estimate in _with_mean(parts)]


def _grouped(answers: Iterable[Answer]) -> Groups:
    """Answers by group and configuration, in the order of their ids: resampling then draws the same records."""
    groups: Groups = defaultdict(lambda: defaultdict(list))
    for answer in answers:
        groups[answer.question.group][answer.configuration].append(answer)
    for configurations in groups.values():
        for given in configurations.values():
            given.sort(key=lambda answer: answer.question.id)
    return groups


def _of_group(
    metric: Metric, group: str, configuration: str, answers: list[Answer], settings: BootstrapSettings
) -> Iterator[_Resampled]:
    rows = [metric.statistics(answer) for answer in answers if metric.applies(answer)]
    if not rows:
        return
    statistics = np.array(rows, dtype=np.float64)
    value = float(metric.value(statistics.sum(0, keepdims=True))[0])
    samples = resampled(statistics, metric.value, settings, group)
    yield Estimate(configuration, metric.name, group, len(rows), value, *interval(samples)), samples


def _with_mean(tasks: list[_Resampled]) -> list[Estimate]:
    found = [estimate for estimate, _ in tasks]
    low, high = interval(np.mean([samples for _, samples in tasks], axis=0))
    value, records = float(np.mean([one.value for one in found])), sum(one.records for one in found)
    return [*found, Estimate(found[0].configuration, found[0].metric, None, records, value, low, high)]
