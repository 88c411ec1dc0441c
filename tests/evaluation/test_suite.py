"""Suites: reading, choosing, and what is wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.evaluation.suite import SUITES, load_suite

ROOT = Path(__file__).parents[2]
DATA = ROOT / "demo" / "data"


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mcq(number: int, **changes: Any) -> dict[str, Any]:
    row = {"id": f"q{number}", "task": "a", "kind": "mcq", "prompt": "p", "choices": ["yes", "no"], "answer": "yes"}
    return row | changes


@pytest.mark.parametrize("name", SUITES)
def test_the_demo_suites_are_read(name: str) -> None:
    suite = load_suite(name, DATA)
    assert suite.composite == name.startswith("composite")
    assert suite.name == name
    assert not any("<|" in answer for question in suite.questions for answer in question.answers)
    assert {question.group for question in suite.questions if suite.composite} <= {"composite2", "composite3"}


def test_tasks_and_limit_choose_questions_of_one_fingerprint() -> None:
    whole = load_suite("suite-test", DATA)
    part = load_suite("suite-test", DATA, ["gsm8k", "winowhy"], limit=3)
    assert [question.group for question in part.questions].count("gsm8k") == 3
    assert {question.group for question in part.questions} == {"gsm8k", "winowhy"}
    assert part.fingerprint == whole.fingerprint
    composite = load_suite("composite2-test", DATA, ["goal_step_wikihow", "cs_algorithms"])
    assert {question.tasks for question in composite.questions} <= {
        ("goal_step_wikihow", "cs_algorithms"),
        ("cs_algorithms", "goal_step_wikihow"),
    }


def test_a_file_of_ones_own_is_a_suite(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path / "mine.jsonl", mcq(1, answer="yes<|endoftext|>"), mcq(2)), DATA)
    assert suite.name == "mine"
    assert [question.reference for question in suite.questions] == ["yes", "yes"]


def test_wrong_suites_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"

    def said(name: str, tasks: list[str] | None = None) -> str:
        with pytest.raises(UserError) as caught:
            load_suite(name, DATA, tasks)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "unknown suite 'suite'; known are suite-test, composite2-test, composite3-test" in said("suite")
    assert "lacks the column(s) prompt" in said(write(path, {"id": "a", "answer": "b"}))
    assert "lacks the column(s) kind, choices" in said(
        write(path, {"id": "a", "prompt": "p", "task": "t", "answer": "b"})
    )
    assert "lacks the column(s) answers" in said(write(path, {"id": "a", "prompt": "p", "tasks": ["t"]}))
    assert "none of the choices in 1 rows (id 'q2')" in said(write(path, mcq(1), mcq(2, answer="maybe")))
    assert "1 rows repeat the id of another" in said(write(path, mcq(1), mcq(1)))
    assert "1 rows have no value in one of" in said(write(path, mcq(1), mcq(2, prompt=None)))
    assert "has no task b; it has a" in said(write(path, mcq(1)), ["b"])
    assert "has no question whose tasks are all among winowhy" in said("composite2-test", ["winowhy"])
    assert "cannot read" in said(str(tmp_path / "none.parquet"))
