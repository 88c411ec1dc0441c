"""The command: a whole suite on a tiny model, interrupted and gone on with; runs and their references."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import evaluate
from pipeline.engine import Engine
from pipeline.errors import UserError
from pipeline.evaluation.configurations import Configuration
from pipeline.records import DATA, DEAD
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard
from pipeline.storage.output.run import RunFolder, encode_schema
from tests import tiny
from tests.rows import DATA_ROW

FILES = {"results.json", "metrics.parquet", "records.parquet", "tables.md"}
SHARED = {"base", "oracle", "routed p=0.6", "routed p=0.6 + gate", "routed p=0.9", "top-1", "equal"}
NAMES = SHARED | {"softmax p=0.6", "softmax p=0.9"}
PER_TASK = 4


@pytest.fixture
def words(tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> list[str]:
    paths = {"model": tiny_model, "bank": tiny_bank, "router": tiny_router}
    chosen = [word for name, path in paths.items() for word in (f"{name}=custom", f"{name}.path={path}")]
    return [*chosen, "model.dtype=fp32", "max_new_tokens=6", "bootstrap.resamples=100", "device=cpu"]


@pytest.fixture
def suite(tmp_path: Path) -> str:
    """Multiple choice about red, questions about cold."""
    rows = []
    for task, kind in (("red", "mcq"), ("cold", "qa")):
        for number, prompt in enumerate(tiny.prompts_of(task, PER_TASK)):
            choices = ["red1 red2", "tall3", "slow0 slow1 slow2"] if kind == "mcq" else []
            answer = choices[0] if choices else prompt.split()[0]
            row = {"id": f"{task}{number}", "task": task, "kind": kind, "prompt": prompt}
            rows.append(row | {"choices": choices, "answer": answer})
    path = tmp_path / "tiny.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """What the engine was asked to generate: (prompt, mixture), in order."""
    seen: list[Any] = []
    plain = Engine.generate

    def generate(engine: Engine, requests: Any, *args: Any, **more: Any) -> Iterator[Any]:
        requests = list(requests)
        seen.extend((tuple(r.tokens), r.mixture.key) for r in requests)
        return plain(engine, requests, *args, **more)

    monkeypatch.setattr(Engine, "generate", generate)
    return seen


def figures(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found


def test_a_suite_is_compared_and_each_record_and_mixture_generated_once(
    suite: str, words: list[str], tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert evaluate.main(["--suite", suite, "--output", str(output), *words]) == 0
    assert {path.name for path in output.iterdir()} == FILES | {"work"}
    assert "| configuration | adapters | accuracy | likeliest choice |" in capsys.readouterr().out
    assert len(asked) == len(set(asked)) < len(NAMES) * 2 * PER_TASK
    records = pq.read_table(output / "records.parquet").to_pylist()
    assert len(records) == len(NAMES) * 2 * PER_TASK
    assert len({(row["id"], row["mixture"]) for row in records}) == len(asked)
    by_key: dict[Any, set[Any]] = {}
    for row in records:
        by_key.setdefault((row["id"], row["mixture"]), set()).add((row["output"], str(row["choice_log_probabilities"])))
    assert all(len(same) == 1 for same in by_key.values())
    mixtures = {(row["configuration"], row["id"]): row["mixture"] for row in records}
    assert mixtures["base", "red0"] == "base"
    assert mixtures["oracle", "cold0"] == "cold:1.0"
    assert mixtures["equal", "red0"] == "+".join(f"{name}:0.125" for name in sorted(tiny.ADAPTERS))
    made = figures(output)
    assert set(made["metrics"]) == {
        *("accuracy", "choice_accuracy", "choice_accuracy_per_token"),
        *("exact_match", "bleu", "chrf", "rouge1", "rougeL"),
    }
    assert set(made["metrics"]["accuracy"]) == NAMES
    assert made["versions"]["sacrebleu"]
    metrics = pq.read_table(output / "metrics.parquet").to_pylist()
    # Three metrics of multiple choice and five of text, one task each and the mean.
    assert len(metrics) == len(NAMES) * 8 * 2


@pytest.mark.long
def test_an_interrupted_suite_goes_on_where_it_stopped(
    suite: str, words: list[str], tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, whole = tmp_path / "out", tmp_path / "whole"
    evaluate.main(["--suite", suite, "--output", str(whole), *words])
    distinct = len(asked)
    asked.clear()
    stop_after(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        evaluate.main(["--suite", suite, "--output", str(output), *words])
    monkeypatch.undo()
    left = counted(monkeypatch)
    evaluate.main(["--suite", suite, "--output", str(output), *words])
    assert len(left) == distinct - 3
    left.clear()
    evaluate.main(["--suite", suite, "--output", str(output), *words])
    assert left == []
    assert figures(output)["metrics"] == figures(whole)["metrics"]
    for name in ("metrics.parquet", "records.parquet"):
        assert pq.read_table(output / name).equals(pq.read_table(whole / name))


def test_each_task_is_answered_without_its_own_adapter(
    suite: str, words: list[str], tmp_path: Path, asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output, examples = tmp_path / "out", tmp_path / "examples.jsonl"
    rows = [{"task": task, "prompt": f"{task}1", "answer": "x"} for task in ("red", "cold")]
    examples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--suite", suite, "--output", str(output), "--leave-one-out", *words]
    assert evaluate.main(command) == 0
    assert "few-shot   left out" in capsys.readouterr().out
    asked.clear()
    assert evaluate.main([*command, "--examples", str(examples)]) == 0
    assert len(asked) == 2 * PER_TASK, "only the prompts with examples are new"
    records = pq.read_table(output / "records.parquet").to_pylist()
    mixtures = {(row["configuration"], row["id"]): row["mixture"] for row in records}
    others = sorted(set(tiny.ADAPTERS) - {"red"})
    assert mixtures["all others", "red0"] == "+".join(f"{name}:{1 / 7!r}" for name in others)
    assert mixtures["own adapter", "red0"] == "red:1.0"
    assert "few-shot base" in figures(output)["metrics"]["accuracy"]


def test_tasks_without_an_adapter_have_no_oracle(suite: str, words: list[str], tmp_path: Path) -> None:
    rows = [row | {"task": "poetry"} for row in pq.read_table(suite).to_pylist()]
    path, output = tmp_path / "unknown.parquet", tmp_path / "out"
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert evaluate.main(["--suite", str(path), "--output", str(output), "--leave-one-out", *words]) == 0
    assert "own adapter" not in figures(output)["metrics"]["accuracy"]


def stop_after(monkeypatch: pytest.MonkeyPatch, answers: int) -> None:
    plain = Engine.generate

    def generate(engine: Engine, *args: Any, **more: Any) -> Iterator[Any]:
        for number, answer in enumerate(plain(engine, *args, **more)):
            if number == answers:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(Engine, "generate", generate)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    plain = Engine.generate

    def generate(engine: Engine, requests: Any, *args: Any, **more: Any) -> Iterator[Any]:
        seen.extend(requests)
        return plain(engine, requests, *args, **more)

    monkeypatch.setattr(Engine, "generate", generate)
    return seen


@pytest.mark.long
def test_tasks_and_limit_choose_and_share_the_answers(
    suite: str, words: list[str], tmp_path: Path, asked: list[Any]
) -> None:
    output = tmp_path / "out"
    command = ["--suite", suite, "--output", str(output), *words]
    evaluate.main([*command, "--limit", "1", "--task", "red"])
    assert figures(output)["questions"] == 1
    few = len(asked)
    evaluate.main(command)
    assert len(asked) == len(set(asked)) > few
    asked.clear()
    evaluate.main([*command, "max_new_tokens=7"])
    assert asked


def test_a_composite_suite_has_a_blend_for_an_oracle(words: list[str], tmp_path: Path) -> None:
    [red], [cold] = tiny.prompts_of("red", 1), tiny.prompts_of("cold", 1)
    row = {"id": "a", "tasks": ["red", "cold"], "prompt": f"{red} {cold}", "answers": ["red1", "cold1"]}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    output = tmp_path / "out"
    assert evaluate.main(["--suite", str(tmp_path / "pairs.jsonl"), "--output", str(output), *words]) == 0
    made = figures(output)
    assert set(made["metrics"]) == {"bleu", "chrf", "rouge1", "rougeL", "answers_found"}
    assert set(made["metrics"]["bleu"]) == NAMES - {"oracle"} | {
        "oracle-blend",
        "sentence p=0.6",
        "parts",
        "parts without marks",
    }
    records = pq.read_table(output / "records.parquet").to_pylist()
    assert [r["mixture"] for r in records if r["configuration"] == "oracle-blend"] == ["cold:0.5+red:0.5"]
    assert {r["reference"] for r in records} == {"1. red1\n2. cold1"}


def test_a_record_that_cannot_be_answered_counts_as_wrong(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "a", "task": "red", "kind": "mcq", "choices": ["x", "y"], "answer": "x"}
    rows = [row | {"prompt": "red1"}, row | {"id": "b", "prompt": "red1 " * tiny.CONTEXT}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "out"
    evaluate.main(["--suite", str(tmp_path / "long.jsonl"), "--output", str(output), *words])
    assert "answers failed and count as empty or wrong; the first: PromptTooLong" in capsys.readouterr().out
    failed = [r for r in pq.read_table(output / "records.parquet").to_pylist() if r["id"] == "b"]
    assert {(r["output"], r["finish_reason"], r["accuracy"], r["choice_accuracy"]) for r in failed} == {
        ("", "failed", 0, 0)
    }


def test_configurations_with_arguments_of_their_own_share_no_answers(
    suite: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: list[Any]
) -> None:
    """The hook for mixtures that change along the text."""
    calls: list[dict[str, Any]] = []
    plain = Engine.generate

    def generate(engine: Engine, requests: Any, sampling: Any, **more: Any) -> Iterator[Any]:
        calls.append(more)
        return plain(engine, requests, sampling)

    monkeypatch.setattr(Engine, "generate", generate)
    table: Callable[..., list[Configuration]] = evaluate.configurations

    def extended(*args: Any) -> list[Configuration]:
        base, oracle, *_ = table(*args)
        own = Configuration("own", oracle.asked, "own x", {"reroute": len})
        return [base, oracle, own]

    monkeypatch.setattr(evaluate, "configurations", extended)
    evaluate.main(["--suite", suite, "--output", str(tmp_path / "out"), *words])
    assert calls == [{}, {"reroute": len}]
    assert len(asked) == 3 * 2 * PER_TASK


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--suite", "suite"], "unknown suite 'suite'; known are suite-test"),
        (["--suite", "suite-test"], "has no adapter for the task(s) abstract_narrative_understanding, "),
        (["--suite", "suite-test", "--limit", "0"], "Invalid value for '--limit': 0 is not in the range x>=1"),
        (["--suite", "suite-test", "--against", "x"], "--against does not go with --suite"),
        (["--run", "x", "--limit", "3"], "--limit does not go with --run"),
        (["--run", "x", "--leave-one-out"], "--leave-one-out does not go with --run"),
        (["--suite", "suite-test", "--examples", "x"], "--examples goes with --leave-one-out only"),
        (["--suite", "suite-test", "bootstrap.resamples=3"], "config: bootstrap.resamples"),
    ],
)
def test_wrong_commands_are_refused_in_one_line(words: list[str], changes: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        evaluate.main([*words, *changes])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def make_run(url: Path, outputs: dict[str, str], **passed: list[str]) -> str:
    """A finished run with these outputs and passed-through columns."""
    schema = pa.schema([*DATA, *((name, pa.string()) for name in passed)])
    schemas = {"data": encode_schema(schema), "dead": encode_schema(DEAD)}
    RunFolder(str(url)).write_json("run.json", {"schemas": schemas, "counts": {"data": len(outputs)}})
    rows = [{"id": identity, "output": text, **DATA_ROW} for identity, text in outputs.items()]
    for name, values in passed.items():
        rows = [row | {name: value} for row, value in zip(rows, values, strict=True)]
    data, dead = pa.Table.from_pylist(rows, schema), DEAD.empty_table()
    nothing = np.array([], np.int64)
    commit_shard(
        MarkerStore(str(url)),
        Shard("w000000-a-0", None, None, np.arange(len(rows)), nothing, count_rows(data, dead)),
        data,
        dead,
    )
    return str(url)


OUTPUTS = {"1": "Yes.", "2": "no", "3": "the cat sat", "4": "x"}


def test_two_runs_are_held_against_a_column_that_they_passed_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passed = {"answer": ["yes", "yes", "the cat sat down", "x"], "task": ["a", "a", "b", "b"]}
    run = make_run(tmp_path / "run", OUTPUTS, **passed)
    other = make_run(tmp_path / "other", OUTPUTS | {"2": "yes"}, **passed)
    command = ["--run", run, "--against", other, "--json", str(tmp_path / "figures.json")]
    assert evaluate.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].split() == ["a", "2", "50.0%", "100.0%"]
    assert lines[-1].split() == ["mean", "50.0%", "75.0%"]
    made = json.loads((tmp_path / "figures.json").read_text())
    assert made["runs"][run]["groups"]["a"] == {"records": 2, "right": 1, "accuracy": 0.5}
    assert made["runs"][other]["mean"] == 0.75
    assert made["metrics"]["exact_match"][run]["tasks"] == {"a": 50.0, "b": 50.0}
    # ROUGE-1 of "the cat sat" and "the cat sat down": precision 1, recall 3/4; the other is right.
    assert made["metrics"]["rouge1"][run]["tasks"]["b"] == round(100 * (6 / 7 + 1) / 2, 2)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_a_run_is_held_against_a_table_of_answers_by_id(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    run = make_run(tmp_path / "run", OUTPUTS)
    rows = [
        {"id": 1, "answer": "yes<|endoftext|>", "task": "a", "kind": "mcq"},
        {"id": 3, "answer": "the cat sat", "task": "b", "kind": "qa"},
        {"id": 9, "answer": "?", "task": "b", "kind": "qa"},
    ]
    path = tmp_path / f"answers.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("id,answer,task,kind\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows))
    output = tmp_path / "out"
    assert evaluate.main(["--run", run, "--reference", str(path), "--output", str(output)]) == 0
    assert f"{run}: 2 of 4 records have no answer in {path} and are left out" in capsys.readouterr().out
    made = figures(output)
    assert made["metrics"]["accuracy"][run]["tasks"] == {"a": 100.0}
    assert made["metrics"]["rougeL"][run]["tasks"] == {"b": 100.0}
    assert {path.name for path in output.iterdir()} == FILES


@pytest.mark.long
def test_references_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", OUTPUTS)
    path = tmp_path / "answers.jsonl"

    def said(*more: str, rows: list[dict[str, Any]] | None = None) -> str:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows or []))
        with pytest.raises(UserError) as caught:
            evaluate.main(["--run", run, *more])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    reference = ["--reference", str(path)]
    assert "has no column 'answer'; it has id, output" in said()
    assert "lacks the column(s) answer; it has id, right" in said(*reference, rows=[{"id": "1", "right": "x"}])
    assert "none of the 4 records" in said(*reference, rows=[{"id": "7", "answer": "x"}])
    twice = [{"id": "1", "answer": "x"}] * 2
    assert "gives 1 id(s) more than once, '1' first" in said(*reference, rows=twice)


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("option", ["--output", "--json"])
def test_files_of_others_are_never_replaced(name: str, option: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"of": "others"}')
    target = tmp_path if option == "--output" else tmp_path / name
    with pytest.raises(UserError, match=f"{name}.*; give another {option}"):
        evaluate.main(["--run", str(tmp_path / "run"), option, str(target)])
    assert (tmp_path / name).read_text() == '{"of": "others"}'
