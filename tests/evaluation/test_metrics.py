"""The registry: a new metric is one entry in `METRICS`, and every output has it."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.evaluation.bootstrap import BootstrapSettings
from pipeline.evaluation.metrics import METRICS, Likelihoods, Prediction, applicable_metrics, mean_metric
from pipeline.evaluation.results import Evaluation, write_evaluation
from pipeline.evaluation.suite import Question

ROOT = Path(__file__).parents[2]


def prediction(number: int, output: str, likelihoods: Likelihoods | None = None) -> Prediction:
    kind = "mcq" if likelihoods else "qa"
    question = Question(str(number), "a", kind, ("cat",), choices=("cat", "dog"))
    return Prediction("base", question, output, "base", "stop", likelihoods)


def test_a_new_metric_is_one_entry_and_in_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brevity = mean_metric("brevity", "brevity of answers", ("qa",), lambda p: 1 / len(p.output.split()))
    monkeypatch.setitem(METRICS, "brevity", brevity)
    evaluation = Evaluation.of([prediction(1, "cat"), prediction(2, "a cat")], BootstrapSettings(resamples=50, seed=0))
    write_evaluation(tmp_path, "two questions", evaluation, {})
    assert "| brevity of answers |" in evaluation.means.splitlines()[0]
    page = (tmp_path / "tables.md").read_text()
    assert "## brevity of answers, by task\n\n| task | records | base |" in page
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["metrics"]["brevity"]["base"]["tasks"] == {"a": 75.0}
    values = pq.read_table(tmp_path / "metrics.parquet").to_pylist()
    assert [row["value"] for row in values if row["metric"] == "brevity"] == [75.0, 75.0]
    assert pq.read_table(tmp_path / "records.parquet")["brevity"].to_pylist() == [100.0, 50.0]


def test_metrics_of_likelihoods_are_left_out_if_no_choice_was_scored() -> None:
    scored = {metric.name for metric in METRICS.values() if metric.needs_likelihoods}
    assert scored == {"choice_accuracy", "choice_accuracy_per_token"}
    question = Question("1", "a", "mcq", ("cat",), choices=("cat", "dog"))
    assert [m.name for m in applicable_metrics([Prediction("base", question, "cat")])] == ["accuracy"]
    with_scores = applicable_metrics([prediction(1, "cat", Likelihoods((-1.0, -2.0), (1, 1)))])
    assert [m.name for m in with_scores] == ["accuracy", "choice_accuracy", "choice_accuracy_per_token"]


@pytest.mark.long
def test_one_file_names_a_metric() -> None:
    words = {word for m in METRICS.values() for word in (m.name, m.title)} - {"accuracy", "exact match"}
    naming = {
        str(path.relative_to(ROOT))
        for folder in ("pipeline", "jobs", "conf")
        for path in (ROOT / folder).rglob("*.py")
        if words.intersection(constants(path))
    }
    assert naming - {"pipeline/evaluation/text_metrics.py"} == {"pipeline/evaluation/metrics.py"}


def constants(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
