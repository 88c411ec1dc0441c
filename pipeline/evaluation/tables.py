"""Metric values and predictions as Markdown, as JSON and as Arrow tables; columns come from the metrics' names."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.records import Mixture

from .metric_values import MetricValue
from .metrics import Metric, Prediction

_VALUE_SCHEMA = pa.schema(
    [
        ("configuration", pa.string()),
        ("metric", pa.string()),
        ("task", pa.string()),  # null: the mean over tasks
        ("records", pa.int64()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)
_PREDICTION_COLUMNS: dict[str, tuple[pa.DataType, Callable[[Prediction], Any]]] = {
    "configuration": (pa.string(), lambda p: p.configuration),
    "id": (pa.string(), lambda p: p.question.id),
    "task": (pa.string(), lambda p: p.question.group),
    "kind": (pa.string(), lambda p: p.question.kind),
    "mixture": (pa.string(), lambda p: p.mixture),
    "finish_reason": (pa.string(), lambda p: p.finish_reason),
    "output": (pa.string(), lambda p: p.output),
    "reference": (pa.string(), lambda p: p.question.reference),
    "choice_log_probabilities": (pa.list_(pa.float64()), lambda p: p.likelihoods.sums if p.likelihoods else None),
}


def value_table(values: Iterable[MetricValue]) -> pa.Table:
    """One row for each configuration, metric and task."""
    return pa.Table.from_pylist([{**vars(one), "task": one.group} for one in values], schema=_VALUE_SCHEMA)


def prediction_table(predictions: Iterable[Prediction], metrics: Sequence[Metric]) -> pa.Table:
    """One row for each configuration and record, with each metric of this record alone; null if it does not apply."""
    predictions = list(predictions)
    columns = {
        name: pa.array([value(one) for one in predictions], dtype)
        for name, (dtype, value) in _PREDICTION_COLUMNS.items()
    }
    figures = {
        metric.name: pa.array([metric.of(one) if metric.applies(one) else None for one in predictions], pa.float64())
        for metric in metrics
    }
    return pa.table(columns | figures)


def values_json(values: Iterable[MetricValue]) -> dict[str, Any]:
    """By metric and configuration: the mean with its interval, and the value of each task."""
    figures: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: {"mean": {}, "tasks": {}}))
    for one in values:
        entry = figures[one.metric][one.configuration]
        if one.group is None:
            entry["mean"] = {"value": round(one.value, 2), "low": round(one.low, 2), "high": round(one.high, 2)}
            entry["records"] = one.records
        else:
            entry["tasks"][one.group] = round(one.value, 2)
    return figures


def mean_table(values: Iterable[MetricValue], metrics: Sequence[Metric], predictions: Iterable[Prediction]) -> str:
    """Markdown: a row for each configuration with the means over tasks and their intervals."""
    means = {(one.configuration, one.metric): one for one in values if one.group is None}
    shown = [metric for metric in metrics if any(name == metric.name for _, name in means)]
    rows = [
        [name, f"{size:.2f}", *(_with_interval(means.get((name, metric.name))) for metric in shown)]
        for name, size in _mean_adapters(predictions).items()
    ]
    return _markdown(["configuration", "adapters", *(metric.title for metric in shown)], rows)


def task_table(values: Iterable[MetricValue], metric: Metric, configurations: Sequence[str]) -> str | None:
    """Markdown: a row for each task with the metric of each configuration; None if no task has the metric."""
    found = {(one.group, one.configuration): one for one in values if one.metric == metric.name and one.group}
    records = {group: max(one.records for (g, _), one in found.items() if g == group) for group, _ in found}
    rows = [
        [str(group), str(count), *(_value(found.get((group, name))) for name in configurations)]
        for group, count in sorted(records.items(), key=lambda item: str(item[0]))
    ]
    return _markdown(["task", "records", *configurations], rows) if rows else None


def _mean_adapters(predictions: Iterable[Prediction]) -> dict[str, float]:
    """Mean number of adapters in the mixtures of each configuration."""
    counts: dict[str, list[int]] = defaultdict(list)
    for prediction in predictions:
        counts[prediction.configuration].append(len(Mixture.parse(prediction.mixture or "base").adapters))
    return {name: sum(sizes) / len(sizes) for name, sizes in counts.items()}


def _with_interval(one: MetricValue | None) -> str:
    return f"{one.value:.1f} ({one.low:.1f} to {one.high:.1f})" if one else ""


def _value(one: MetricValue | None) -> str:
    return f"{one.value:.1f}" if one else ""


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
