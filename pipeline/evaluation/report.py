"""The files of an evaluation: ``results.json``, ``metrics.parquet``, ``records.parquet`` and ``tables.md``."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.errors import UserError

from .bootstrap import BootstrapSettings
from .estimates import Estimate, estimates
from .metrics import Answer, Metric, metrics
from .results import write_results
from .tables import as_json, mean_table, metric_table, record_table, task_table

_NOTES = """Values are 0 to 100. In brackets: 95 % intervals of a percentile bootstrap over the records ({resamples}
resamples), within tasks where it is a mean over tasks. BLEU is that of the corpus (its resamples add up the records'
n-gram counts); the other metrics are means over the records. Intervals of single tasks are in `metrics.parquet`."""


@dataclass(frozen=True)
class Evaluation:
    """Answers and what was made of them."""

    answers: list[Answer]
    metrics: list[Metric]
    estimates: list[Estimate]
    settings: BootstrapSettings

    @staticmethod
    def of(answers: list[Answer], settings: BootstrapSettings) -> "Evaluation":
        """Compute all metrics that apply to the answers."""
        chosen = metrics(likelihoods=any(answer.likelihoods for answer in answers))
        used = [metric for metric in chosen if any(map(metric.applies, answers))]
        return Evaluation(answers, used, estimates(answers, used, settings), settings)

    @property
    def means(self) -> str:
        """Markdown table of the means over tasks."""
        return mean_table(self.estimates, self.metrics, self.answers)

    def figures(self) -> dict[str, Any]:
        """The metrics for a result file."""
        return {"unit": "percent", "resamples": self.settings.resamples, "metrics": as_json(self.estimates)}


def write_evaluation(folder: Path, title: str, evaluation: Evaluation, about: Mapping[str, Any]) -> None:
    """Write the four files; ``about`` goes into the JSON before the figures."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_results(folder / "results.json", {**about, **evaluation.figures()})
        pq.write_table(metric_table(evaluation.estimates), folder / "metrics.parquet", compression="zstd")
        records = record_table(evaluation.answers, evaluation.metrics)
        pq.write_table(records, folder / "records.parquet", compression="zstd")
        (folder / "tables.md").write_text(_page(title, evaluation))
    except OSError as error:
        raise UserError(f"evaluate: cannot write to {folder}: {error.strerror} (--output)") from None


def _page(title: str, evaluation: Evaluation) -> str:
    names = list(dict.fromkeys(answer.configuration for answer in evaluation.answers))
    notes = _NOTES.format(resamples=f"{evaluation.settings.resamples:,}")
    parts = [f"# {title}", notes, "## Means over tasks", evaluation.means]
    for metric in evaluation.metrics:
        table = task_table(evaluation.estimates, metric, names)
        if table:
            parts += [f"## {metric.title}, by task", table]
    return "\n\n".join(parts) + "\n"
