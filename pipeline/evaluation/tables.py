"""Figures as Markdown, as JSON and as Arrow tables."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.records import Mixture

from .estimates import Estimate
from .metrics import Answer, Metric

METRICS = pa.schema(
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
_RECORD = [
    ("configuration", pa.string()),
    ("id", pa.string()),
    ("task", pa.string()),
    ("kind", pa.string()),
    ("mixture", pa.string()),
    ("finish_reason", pa.string()),
    ("output", pa.string()),
    ("reference", pa.string()),
    ("choice_log_probabilities", pa.list_(pa.float64())),
]


def metric_table(estimates: Iterable[Estimate]) -> pa.Table:
    """One row for each configuration, metric and task."""
    rows = [{**vars(estimate), "task": estimate.group} for estimate in estimates]
    return pa.Table.from_pylist(rows, schema=METRICS)


def record_table(answers: Iterable[Answer], metrics: Sequence[Metric]) -> pa.Table:
    """One row for each configuration and record, with each metric of this record alone; null where it has none."""
    schema = pa.schema([*_RECORD, *((metric.name, pa.float64()) for metric in metrics)])
    return pa.Table.from_pylist([_record(answer, metrics) for answer in answers], schema=schema)


def _record(answer: Answer, metrics: Sequence[Metric]) -> dict[str, Any]:
    question = answer.question
    return {
        "configuration": answer.configuration,
        "id": question.id,
        "task": question.group,
        "kind": question.kind,
        "mixture": answer.mixture,
        "finish_reason": answer.finish_reason,
        "output": answer.output,
        "reference": question.reference,
        "choice_log_probabilities": answer.likelihoods.sums if answer.likelihoods else None,
        **{metric.name: metric.of(answer) for metric in metrics if metric.applies(answer)},
    }


def as_json(estimates: Iterable[Estimate]) -> dict[str, Any]:
    """By metric and configuration: the mean with its interval, and the value of each task."""
    figures: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: {"mean": {}, "tasks": {}}))
    for one in estimates:
        place = figures[one.metric][one.configuration]
        if one.group is None:
            place["mean"] = {"value": round(one.value, 2), "low": round(one.low, 2), "high": round(one.high, 2)}
            place["records"] = one.records
        else:
            place["tasks"][one.group] = round(one.value, 2)
    return figures


def mean_table(estimates: Iterable[Estimate], metrics: Sequence[Metric], answers: Iterable[Answer]) -> str:
    """Markdown: a row for each configuration with the means over tasks and their intervals."""
    means = {(one.configuration, one.metric): one for one in estimates if one.group is None}
    shown = [metric for metric in metrics if any(name == metric.name for _, name in means)]
    sizes = adapters_used(answers)
    rows = [
        [name, f"{size:.2f}", *(_with_interval(means.get((name, metric.name))) for metric in shown)]
        for name, size in sizes.items()
    ]
    return _markdown(["configuration", "adapters", *(metric.title for metric in shown)], rows)


def task_table(estimates: Iterable[Estimate], metric: Metric, configurations: Sequence[str]) -> str | None:
    """Markdown: a row for each task with the metric of each configuration; None where no task has it."""
    found = {(one.group, one.configuration): one for one in estimates if one.metric == metric.name and one.group}
    records = {group: max(one.records for (g, _), one in found.items() if g == group) for group, _ in found}
    rows = [
        [str(group), str(count), *(_value(found.get((group, name))) for name in configurations)]
        for group, count in sorted(records.items(), key=lambda item: str(item[0]))
    ]
    return _markdown(["task", "records", *configurations], rows) if rows else None


def adapters_used(answers: Iterable[Answer]) -> dict[str, float]:
    """Mean number of adapters in the mixtures of each configuration."""
    counts: dict[str, list[int]] = defaultdict(list)
    for answer in answers:
        counts[answer.configuration].append(len(Mixture.parse(answer.mixture or "base").adapters))
    return {name: sum(sizes) / len(sizes) for name, sizes in counts.items()}


def _with_interval(one: Estimate | None) -> str:
    return f"{one.value:.1f} ({one.low:.1f} to {one.high:.1f})" if one else ""


def _value(one: Estimate | None) -> str:
    return f"{one.value:.1f}" if one else ""


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
