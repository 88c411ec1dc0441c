"""The files of an evaluation, and JSON results that say how and when they were made."""

import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from pipeline.errors import UserError

from .bootstrap import BootstrapSettings
from .metric_values import MetricValue, metric_values
from .metrics import Metric, Prediction, applicable_metrics
from .tables import mean_table, prediction_table, task_table, value_table, values_json

_PACKAGES = ("torch", "transformers", "peft", "ray", "pyarrow", "numpy", "sacrebleu", "rouge-score")
_FILES = ("results.json", "metrics.parquet", "records.parquet", "tables.md")
_NOTES = """Values are 0 to 100. In brackets: 95 % intervals of a percentile bootstrap over the records ({resamples}
resamples), within tasks if it is a mean over tasks. BLEU is that of the corpus (its resamples add up the records'
n-gram counts); the other metrics are means over the records. Intervals of single tasks are in `metrics.parquet`."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions, the metrics that apply to them, and the values of these."""

    predictions: list[Prediction]
    metrics: list[Metric]
    values: list[MetricValue]
    settings: BootstrapSettings

    @staticmethod
    def of(predictions: list[Prediction], settings: BootstrapSettings) -> "Evaluation":
        """Compute all metrics that apply to the predictions."""
        metrics = applicable_metrics(predictions)
        return Evaluation(predictions, metrics, metric_values(predictions, metrics, settings), settings)

    @property
    def means(self) -> str:
        """Markdown table of the means over tasks."""
        return mean_table(self.values, self.metrics, self.predictions)

    def to_json(self) -> dict[str, Any]:
        """Return the metrics for a result file."""
        return {"unit": "percent", "resamples": self.settings.resamples, "metrics": values_json(self.values)}


def check_free(folder: Path | None, file: Path | None) -> None:
    """Raise `UserError` if a result would replace what no evaluation wrote: in a folder, or a file of figures."""
    if folder is not None and not _has_figures(folder / _FILES[0]):
        for name in _FILES:
            if (folder / name).exists():
                raise UserError(f"evaluate: {folder} holds another {name}; give another --output")
    if file is not None and file.exists() and not _has_figures(file):
        raise UserError(f"evaluate: {file} was not written by loraloom evaluate; give another --json")


def _has_figures(path: Path) -> bool:
    try:
        return "made" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError):
        return False


def write_evaluation(folder: Path, title: str, evaluation: Evaluation, details: Mapping[str, Any]) -> None:
    """Write ``results.json`` (with ``details``), ``metrics.parquet``, ``records.parquet`` and ``tables.md``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_results(folder / "results.json", {**details, **evaluation.to_json()})
        pq.write_table(value_table(evaluation.values), folder / "metrics.parquet", compression="zstd")
        records = prediction_table(evaluation.predictions, evaluation.metrics)
        pq.write_table(records, folder / "records.parquet", compression="zstd")
        (folder / "tables.md").write_text(_page(title, evaluation))
    except OSError as error:
        raise UserError(f"evaluate: cannot write to {folder}: {error.strerror} (--output)") from None


def write_results(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as JSON with the machine, the versions and the time; the file appears whole or not at all."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    details = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"processor": _processor(), "cpus": os.cpu_count(), "system": platform.system()} | gpu,
        "versions": {"python": platform.python_version()} | _versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(details | figures, indent=1) + "\n")
    part.replace(path)


def _page(title: str, evaluation: Evaluation) -> str:
    names = list(dict.fromkeys(prediction.configuration for prediction in evaluation.predictions))
    notes = _NOTES.format(resamples=f"{evaluation.settings.resamples:,}")
    parts = [f"# {title}", notes, "## Means over tasks", evaluation.means]
    for metric in evaluation.metrics:
        table = task_table(evaluation.values, metric, names)
        if table:
            parts += [f"## {metric.title}, by task", table]
    return "\n\n".join(parts) + "\n"


def _versions() -> dict[str, str]:
    """Versions of the installed packages: an engine is also measured in environments without the pipeline's."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
