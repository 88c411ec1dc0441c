"""Values of metrics with their intervals, for each task and configuration, and their means over the tasks."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import BootstrapSettings, Floats, interval, resampled
from .metrics import Metric, Prediction


@dataclass(frozen=True)
class MetricValue:
    """A value, 0 to 100, and its 95 % interval. ``group``: the task; None for the mean over tasks."""

    configuration: str
    metric: str
    group: str | None
    records: int
    value: float
    low: float
    high: float


_Resampled = tuple[MetricValue, Floats]


def metric_values(
    predictions: Iterable[Prediction], metrics: Sequence[Metric], settings: BootstrapSettings
) -> list[MetricValue]:
    """Compute every metric that applies: first the values of the tasks, then their mean.

    The mean gives each task the same weight, whatever its number of records; its interval comes from resampling within
    the tasks.
    """
    tasks: dict[tuple[str, str], list[_Resampled]] = defaultdict(list)
    for group, configurations in sorted(_grouped(predictions).items()):
        for metric in metrics:
            for name, some in configurations.items():
                tasks[metric.name, name] += _of_group(metric, group, name, some, settings)
    return [value for parts in tasks.values() if parts for value in _with_mean(parts)]


def _grouped(predictions: Iterable[Prediction]) -> dict[str, dict[str, list[Prediction]]]:
    """Group by group and configuration, sorted by id: resampling then draws the same records for each."""
    groups: dict[str, dict[str, list[Prediction]]] = defaultdict(lambda: defaultdict(list))
    for prediction in predictions:
        groups[prediction.question.group][prediction.configuration].append(prediction)
    for configurations in groups.values():
        for some in configurations.values():
            some.sort(key=lambda one: one.question.id)
    return groups


def _of_group(
    metric: Metric, group: str, configuration: str, predictions: list[Prediction], settings: BootstrapSettings
) -> Iterator[_Resampled]:
    rows = [metric.statistics(prediction) for prediction in predictions if metric.applies(prediction)]
    if not rows:
        return
    statistics = np.array(rows, dtype=np.float64)
    value = float(metric.value(statistics.sum(0, keepdims=True))[0])
    samples = resampled(statistics, metric.value, settings, group)
    yield MetricValue(configuration, metric.name, group, len(rows), value, *interval(samples)), samples


def _with_mean(tasks: list[_Resampled]) -> list[MetricValue]:
    values = [value for value, _ in tasks]
    low, high = interval(np.mean([samples for _, samples in tasks], axis=0))
    mean, records = float(np.mean([one.value for one in values])), sum(one.records for one in values)
    return [*values, MetricValue(values[0].configuration, values[0].metric, None, records, mean, low, high)]
