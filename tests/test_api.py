"""The Python API: over lists without Ray, over Ray Datasets, in graphs of others."""

import difflib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline import Generate, build_processor, generate, read_run, route
from pipeline.batches import as_table
from pipeline.errors import UserError
from tests import tiny

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def config(tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> list[str]:
    return [
        *(
            "model=custom",
            f"model.path={tiny_model}",
            "model.dtype=fp32",
            "engine.threads=1",
            "shuffle.shard_records=16",
        ),
        *("bank=custom", f"bank.path={tiny_bank}", "router=custom", f"router.path={tiny_router}"),
        *("generation.max_new_tokens=6", "routing.gate=false"),
    ]


def records(count: int) -> list[dict[str, Any]]:
    prompts = [tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0] for i in range(count)]
    return [{"id": f"r{i}", "prompt": prompt, "weights": i} for i, prompt in enumerate(prompts)]


@pytest.mark.long
def test_conversations_of_any_form_have_the_same_prompt(config: list[str]) -> None:
    talk = [{"role": "user", "content": "red1 red2 red3"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "red1 "}, {"type": "text", "text": "red2 red3"}]}]
    rows = [{"messages": talk}, {"messages": parts}, {"prompt": talk}, {"messages": json.dumps(talk)}]
    together = route(rows, config)
    assert {(row["prompt_tokens"], row["mixture"], row["error"]) for row in together} == {
        (together[0]["prompt_tokens"], "red:1.0", None)
    }
    assert [row["prompt_tokens"] for one in rows for row in route([one], config)] == [
        row["prompt_tokens"] for row in together
    ]
    turns = [{"conversations": [{"from": "human", "value": "red1 red2 red3"}]}]
    assert route(turns, [*config, "input=sharegpt"])[0]["prompt_tokens"] == together[0]["prompt_tokens"]


def test_the_package_names_its_parts_without_loading_them() -> None:
    assert set(pipeline.__all__) <= set(dir(pipeline)) | set(pipeline._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        pipeline.nothing  # noqa: B018


@pytest.mark.long
def test_a_list_is_answered_in_its_order(config: list[str]) -> None:
    rows = records(9)
    rows[4] = {"id": "bad", "prompt": ""}
    answers = generate(rows, config)
    assert [a["id"] for a in answers] == [r["id"] for r in rows]
    assert answers[4]["output"] is None
    assert answers[4]["error"] == "BadPrompt: column 'prompt' is empty"
    assert all(
        a["error"] is None and a["output"] is not None and a["completion_tokens"] > 0
        for a in answers
        if a["id"] != "bad"
    )
    assert answers[0]["input_weights"] == 0
    assert sum(answers[0]["weights"]) == 1
    assert [a["mixture"] for a in route(rows, config)] == [a["mixture"] for a in answers]
    for again, first in zip(generate(rows[:2], config), answers[:2], strict=True):
        assert again.pop("answer_logprob") == pytest.approx(first.pop("answer_logprob"), abs=1e-4), "in other batches"
        assert again == first
    assert generate([], config) == []


def test_columns_without_one_type_come_back_as_they_were(config: list[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"id": str(n), "prompt": "red1 red2", "c": value} for n, value in enumerate([1, "1", {"a": 2**70}, None])
    ]
    assert [row["c"] for row in route(rows, config)] == [row["c"] for row in rows]


@pytest.mark.long
def test_route_says_why(config: list[str]) -> None:
    (found,) = route([{"prompt": "cold1 cold2 cold3"}], config)
    assert found["adapters"] == ["cold"]
    assert found["top_classes"][0]["adapter"] == "cold"
    assert found["prompt_tokens"] > 3


def test_batches_of_any_form_are_the_same(config: list[str]) -> None:
    rows = [{"id": i, "messages": [{"role": "user", "content": f"red{i}"}], "tags": ["a"]} for i in range(3)]
    table = pa.Table.from_pylist(rows)
    messages = np.empty(3, object)
    messages[:] = [row["messages"] for row in rows]
    columns = {"id": np.arange(3), "messages": messages, "tags": np.array([["a"]] * 3)}
    forms = [as_table(form) for form in (table, table.to_pandas(), columns, rows)]
    assert [form.to_pylist() for form in forms] == [rows] * 4
    assert as_table(pd.DataFrame({"prompt": ["a"]})).to_pylist() == [{"prompt": "a"}]
    answered = Generate(config, device="cpu", threads=1)(columns)
    assert answered["id"].to_pylist() == ["0", "1", "2"]
    assert answered["error"].null_count == 3


@pytest.mark.long
def test_what_is_wrong_is_told(config: list[str]) -> None:
    with pytest.raises(UserError, match=r"did you mean generation\.max_new_tokens"):
        generate([{"prompt": "a"}], [*config, "generation.max_tokens=3"])
    with pytest.raises(UserError, match="a URL needs an output URL"):
        generate("in.jsonl", config)
    with pytest.raises(UserError, match="output goes with the URL of an input"):
        generate([], config, output="x")
    with pytest.raises(UserError, match="`loraloom route` takes URLs"):
        route("in.jsonl", config)


def test_a_swap_takes_less_than_ten_lines() -> None:
    before, after = ((EXAMPLES / f"ray_data_llm{end}.py").read_text().splitlines() for end in ("_before", ""))
    changed = [line for line in difflib.ndiff(before, after) if line.startswith(("+ ", "- "))]
    assert 0 < sum(line.startswith("+ ") for line in changed) < 10
    assert sum(line.startswith("- ") for line in changed) < 10
    from ray.data import llm  # what is swapped exists under these names

    assert {"build_processor", "vLLMEngineProcessorConfig"} <= set(dir(llm))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_ray_datasets_become_ray_datasets(config: list[str], tmp_path: Path) -> None:
    import ray

    rows = records(40)
    expected = {a["id"]: a["output"] for a in generate(rows, config)}
    dataset = ray.data.from_items(rows)
    answered = generate(dataset, config).take_all()
    assert {a["id"]: a["output"] for a in answered} == expected
    routed = route(dataset, config).take_all()
    assert {a["id"]: a["mixture"] for a in routed} == {a["id"]: a["mixture"] for a in answered}
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)[1]
    assert "Generate, fn_constructor_args=(config,), batch_size=512, concurrency=1" in " ".join(code.split())
    staged = dataset.map_batches(Generate, fn_constructor_args=(config,), batch_size=16, concurrency=1, num_cpus=0.5)
    assert {a["id"]: a["output"] for a in staged.take_all()} == expected
    processor = build_processor(
        config,
        preprocess=lambda row: {"prompt": row["prompt"], "sampling_params": {"max_tokens": 2}},
        postprocess=lambda row: {"id": row["id"], "tokens": row["completion_tokens"], "kept": row["input_weights"]},
    )
    short = processor(dataset).take_all()
    assert {r["id"]: r["kept"] for r in short} == {r["id"]: r["weights"] for r in rows}
    assert max(r["tokens"] for r in short) <= 2


def test_the_page_says_what_works(config: list[str]) -> None:
    first, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    code = re.sub(r"^config = .*$", "", first, flags=re.M)
    known: dict[str, Any] = {"config": config}
    exec(code, known)
    assert known["answers"][0]["error"] is None
    assert code.count("\n") > 4


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("local_ray")
def test_a_url_is_answered_exactly_once(config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records(20)))
    found = generate(str(tmp_path / "in.jsonl"), config, output=str(tmp_path / "out"))
    assert found.count_rows() == 20
    assert {r["id"]: r["output"] for r in found.to_table().to_pylist()} == {
        a["id"]: a["output"] for a in generate(records(20), config)
    }
    assert read_run(str(tmp_path / "out")).count_rows() == 20
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_the_example_runs(config: list[str], tmp_path: Path) -> None:
    rows = [{"id": row["id"], "question": row["prompt"]} for row in records(10)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = next(word.partition("=")[2] for word in config if word.startswith("model.path="))
    words = [word for word in config if not word.startswith("model")]
    command = [
        sys.executable,
        str(EXAMPLES / "ray_data_llm.py"),
        str(tmp_path / "in.jsonl"),
        str(tmp_path / "out"),
        model,
    ]
    environment = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = pq.read_table(tmp_path / "out").to_pylist()
    assert sorted(a["id"] for a in answers) == sorted(row["id"] for row in rows)
    assert all(a["answer"] is not None for a in answers)
