"""Figures of tasks and their means, and the tables made of them."""

import numpy as np
import pytest

from pipeline.evaluation.bootstrap import BootstrapSettings
from pipeline.evaluation.metric_values import MetricValue, metric_values
from pipeline.evaluation.metrics import METRICS, Likelihoods, Prediction, likeliest_choice
from pipeline.evaluation.runs import accuracy_by_group, accuracy_table
from pipeline.evaluation.suite import Kind, Question
from pipeline.evaluation.tables import mean_table, prediction_table, task_table, value_table, values_json


def answer(
    group: str, number: int, output: str, right: str, kind: Kind = "mcq", likelihoods: Likelihoods | None = None
) -> Prediction:
    question = Question(f"{group}{number}", group, kind, (right,), choices=("yes", "no") if kind == "mcq" else ())
    return Prediction("routed", question, output, "red:0.5+tall:0.5", "stop", likelihoods)


def found(answers: list[Prediction]) -> dict[tuple[str, str | None], MetricValue]:
    made = metric_values(answers, list(METRICS.values()), BootstrapSettings(1000, seed=0))
    return {(one.metric, one.group): one for one in made}


def test_tasks_weigh_the_same_in_the_mean() -> None:
    answers = [answer("a", i, "yes", "yes") for i in range(30)]
    answers += [answer("b", i, "Yes." if i % 2 else "no", "yes") for i in range(10)]
    figures = found(answers)
    assert figures["accuracy", "a"].value == figures["accuracy", "a"].low == 100
    assert (figures["accuracy", "b"].value, figures["accuracy", "b"].records) == (50, 10)
    mean = figures["accuracy", None]
    assert (mean.value, mean.records) == (75, 40)
    # Resampled within tasks: task a adds no spread, so the mean's interval is half that of task b.
    task = figures["accuracy", "b"]
    assert mean.high - mean.low == pytest.approx((task.high - task.low) / 2)


def test_metrics_apply_by_kind() -> None:
    figures = found([answer("a", 0, "yes", "yes"), answer("b", 0, "the cat", "the cat", "qa")])
    assert {name for name, group in figures if group == "a"} == {
        "accuracy",
        "choice_accuracy",
        "choice_accuracy_per_token",
    }
    assert {name for name, group in figures if group == "b"} == {"exact_match", "bleu", "chrf", "rouge1", "rougeL"}
    assert figures["rougeL", None].value == 100


def test_a_composite_is_held_against_the_numbered_answers() -> None:
    question = Question("x", "composite2", "composite", ("yes", "blue sky"), ("a", "b"))
    assert question.reference == "1. yes\n2. blue sky"
    figures = found([Prediction("routed", question, "1. yes\n2. blue sky", "base")])
    assert {name: one.value for (name, group), one in figures.items() if group} == pytest.approx(
        {"bleu": 100, "chrf": 100, "rouge1": 100, "rougeL": 100, "answers_found": 100}
    )


def test_the_likeliest_choice_by_sum_and_per_token() -> None:
    scores = Likelihoods((-6.0, -4.0), (3, 1))
    assert (likeliest_choice(scores), likeliest_choice(scores, per_token=True)) == (1, 0)
    assert likeliest_choice(Likelihoods((-4.0, -4.0), (1, 1))) == 0
    figures = found([answer("a", 0, "", "yes", likelihoods=scores), answer("a", 1, "", "yes")])
    assert figures["choice_accuracy", "a"].value == 0
    assert figures["choice_accuracy_per_token", "a"].value == 50  # the one without scores counts as wrong


def test_the_bleu_interval_comes_from_resampled_counts() -> None:
    pairs = [("the cat sat on the mat today", "the cat sat on the mat today"), ("no idea at all", "it rained here")]
    figures = found([answer("a", i, *pairs[i % 2], "qa") for i in range(20)])
    one = figures["bleu", "a"]
    # 7 of 11 words, 6 of 9 pairs, 5 of 7 triples, 4 of 5 quadruples; 11 words against 10.
    assert one.value == pytest.approx(100 * np.prod([7 / 11, 6 / 9, 5 / 7, 4 / 5]) ** 0.25)
    assert one.low < one.value < one.high


def test_tables_hold_every_figure() -> None:
    answers = [
        answer("a", 0, "yes", "yes", likelihoods=Likelihoods((-1.0, -2.0), (1, 1))),
        answer("b", 0, "a", "b", "qa"),
    ]
    made = metric_values(answers, list(METRICS.values()), BootstrapSettings(1000, seed=0))
    table = value_table(made).to_pylist()
    assert len(table) == len(made)
    assert {"configuration": "routed", "metric": "accuracy", "task": None, "records": 1} | {
        "value": 100.0,
        "low": 100.0,
        "high": 100.0,
    } in table
    first, second = prediction_table(answers, list(METRICS.values())).to_pylist()
    assert (first["accuracy"], first["choice_log_probabilities"], first["bleu"]) == (100.0, [-1.0, -2.0], None)
    assert (second["accuracy"], second["reference"], second["exact_match"]) == (None, "b", 0.0)
    figures = values_json(made)
    assert figures["accuracy"]["routed"]["mean"] == {"value": 100.0, "low": 100.0, "high": 100.0}
    assert figures["accuracy"]["routed"]["tasks"] == {"a": 100.0}
    means = mean_table(made, list(METRICS.values()), answers).splitlines()
    assert means[0].startswith("| configuration | adapters | accuracy | likeliest choice |")
    assert means[2].startswith("| routed | 2.00 | 100.0 (100.0 to 100.0) |")
    assert task_table(made, METRICS["accuracy"], ["routed"]) == (
        "| task | records | routed |\n| --- | ---: | ---: |\n| a | 1 | 100.0 |"
    )
    assert task_table(made, METRICS["answers_found"], ["routed"]) is None


def test_exact_match_is_counted_by_group_for_all_kinds() -> None:
    answers = [answer("a", 0, "Yes.", "yes"), answer("a", 1, "no", "yes"), answer("b", 0, "x", "x", "qa")]
    groups = accuracy_by_group(answers)
    assert {group: (a.records, a.right, a.accuracy) for group, a in groups.items()} == {
        "a": (2, 1, 0.5),
        "b": (1, 1, 1.0),
    }
    lines = accuracy_table({"out": groups, "other": {"a": groups["a"]}}).splitlines()
    assert lines[1].split() == ["a", "2", "50.0%", "50.0%"]
    assert lines[2].split() == ["b", "1", "100.0%", "-"]
    assert lines[3].split() == ["mean", "75.0%", "50.0%"]
