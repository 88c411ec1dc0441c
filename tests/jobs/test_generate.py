"""The command: exit codes, one clear line for each user error, nothing written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import generate, route
from jobs._cli import Job, parse
from jobs._options import RecordOptions
from jobs.route import read_settings
from pipeline.engine import Constraint, Sampling
from pipeline.errors import UserError
from pipeline.job.generate import GenerateJob
from tests import tiny
from tests.adapters.make import LFS_POINTER
from tests.storage import user_error

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> dict[str, str]:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"prompt": f"red{i} red2"}) + "\n" for i in range(4)))
    return {
        "--input": str(tmp_path / "in.jsonl"),
        "--output": str(tmp_path / "out"),
        "model": "custom",
        "model.path": str(tiny_model),
        "model.dtype": "fp32",
        "bank": "custom",
        "bank.path": str(tiny_bank),
        "router": "custom",
        "router.path": str(tiny_router),
        "generation.max_new_tokens": "4",
    }


def words(command: dict[str, str]) -> list[str]:
    return [w for k, v in command.items() for w in ([k, v] if k.startswith("--") else [f"{k}={v}"])]


def parsed(command: dict[str, str], *more: str) -> RecordOptions:
    return RecordOptions.of(parse(generate.main, [*words(command), *more], "loraloom generate").params)


def refusal(command: dict[str, str], *more: str) -> str:
    """The message of a refused command, which must be one line and must have written nothing."""
    with pytest.raises(UserError) as caught:
        generate.main([*words(command), *more])
    assert not Path(command["--output"]).exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.long
def test_the_fixture_itself_is_a_command_that_passes_all_checks(command: dict[str, str]) -> None:
    settings = read_settings(parsed(command))
    assert GenerateJob(settings).prepare().plan.rows == 4


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--input": "/nowhere/at/all.jsonl"}, "input: cannot read /nowhere/at/all.jsonl: no such file"),
        ({"--input": "nosuch://bucket/x.jsonl"}, "url: cannot use nosuch://bucket/x.jsonl"),
        ({"--input": "/nowhere/*.jsonl"}, "input: no file at /nowhere"),
        ({"generation.max_tokens": "4"}, "generation.max_tokens"),
        ({"generation.temperature": "hot"}, "config: generation.temperature"),
        ({"errors.budget": "2"}, "config: errors.budget"),
        ({"routing.top_p": "0"}, "config: routing.top_p"),
        ({"engine": "warp"}, "warp"),
        ({"model.path": "/nowhere"}, "model: /nowhere is neither a folder nor a hub id"),
        ({"model.path": "package:no_such_package/x.gguf"}, "package 'no_such_package' is not installed"),
        ({"bank.path": "/nowhere"}, "bank: no folder /nowhere"),
        ({"bank.adapters": "[red,blue]"}, "has no adapter blue"),
        ({"bank.adapters": "[red,tall]"}, "router: it names adapters that the bank"),
        ({"router.path": "/nowhere"}, "router: cannot load /nowhere"),
        ({"model.prompt_format": "chat"}, "router: it was trained with prompt_format=raw"),
        ({"generation.max_new_tokens": "256"}, "leaves no room for a prompt"),
        ({"generation.top_k": "-1"}, "config: generation.top_k"),
        ({"generation.logprobs": "50"}, "config: generation.logprobs"),
        ({"generation.n": "2"}, "config: generation: n=2 needs a temperature above 0"),
        ({"generation.min_new_tokens": "5"}, "config: generation: min_new_tokens=5 is more than max_new_tokens=4"),
        ({"generation.stop_token_ids": "[7,640]"}, "640 is not in the model's vocabulary of 640"),
        ({"generation.choices": "[a,a]"}, "config: generation: choices: one is empty or given twice"),
        ({"generation.regex": "'(a'"}, "config: generation: regex: "),
        ({"generation.regex": "a", "generation.choices": "[a]"}, "choices do not go together with regex"),
        ({"generation.regex": "a", "generation.grammar": "x"}, "regex and grammar do not go together"),
        ({"generation.json_schema": "/nowhere.json"}, "config: generation.json_schema: cannot read /nowhere.json"),
        ({"generation.json_schema": "{type: wrong}"}, "config: generation: json_schema: Invalid type: wrong"),
        ({"generation.json_schema": "{uniqueItems: true}"}, "uniqueItems"),
        ({"input.prompt_column": "question"}, "has a prompt; it has prompt: set input.prompt_column"),
        ({"input.choices_column": "labels"}, "no record has the column 'labels' (input.choices_column)"),
        ({"input.id_column": "nope"}, "no record has the column 'nope' (input.id_column)"),
        ({"input.sampling_column": "own"}, "no record has the column 'own' (input.sampling_column)"),
    ],
    ids=lambda value: next(iter(value.items())) if isinstance(value, dict) else "",
)
def test_user_errors_are_one_line_and_write_nothing(
    command: dict[str, str], changes: dict[str, str], message: str
) -> None:
    assert message in refusal(command | changes)


@pytest.mark.long
def test_files_of_schemas_and_grammars_are_read(command: dict[str, str], tmp_path: Path) -> None:
    def settings_of(**generation: str) -> Sampling:
        changed = command | {f"generation.{key}": value for key, value in generation.items()}
        return read_settings(parsed(changed)).sampling

    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"properties": {"b": {}, "a": {}}}')
    grammar.write_text('start: "a"')
    expected = Constraint("json_schema", '{"properties": {"b": {}, "a": {}}}')
    assert settings_of(json_schema=str(schema)).constraint == expected
    assert settings_of(json_schema="{properties: {b: {}, a: {}}}").constraint == expected
    assert settings_of(grammar=str(grammar)).constraint == Constraint("grammar", 'start: "a"')
    schema.write_text("{")
    assert "is not JSON" in refusal(command | {"generation.json_schema": str(schema)})


def test_all_wrong_keys_are_named_at_once(command: dict[str, str]) -> None:
    with pytest.raises(UserError) as caught:
        generate.main(words(command | {"routing.top_p": "7", "errors.budget": "-1"}))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b""), ("a.csv", b"id,prompt\n")])
def test_empty_input_is_refused(command: dict[str, str], tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "input: no record in" in refusal(command | {"--input": str(tmp_path / name)})


@pytest.mark.long
def test_an_output_that_cannot_be_used_is_refused(command: dict[str, str], tmp_path: Path) -> None:
    def said(output: Path) -> str:
        with pytest.raises(UserError) as caught:
            generate.main(words(command | {"--output": str(output)}))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    (tmp_path / "file").write_text("")
    assert f"output: {tmp_path / 'file'} is a file; give a folder" in said(tmp_path / "file")
    assert f"output: cannot write to {tmp_path / 'file' / 'a'}" in said(tmp_path / "file" / "a")
    other = tmp_path / "other"
    other.mkdir()
    (other / "run.json").write_text('{"of": "another program"}')
    assert "was not written by this program" in said(other)
    (other / "run.json").write_text("{")
    assert "output: cannot read" in said(other)
    (other / "run.json").unlink()
    (other / "_commits").mkdir()
    (other / "_commits" / "window-000000-abcd.json").write_text("{}")
    assert "holds commit markers but no run.json" in said(other)


@pytest.mark.parametrize("main", [generate.main, route.main])
def test_an_output_that_cannot_be_used_is_told_before_the_model_is_looked_at(
    command: dict[str, str], main: Job, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    wrong = {
        "file": "is a file; give a folder",
        "file/a": "cannot write",
        "link": "cannot write",
        "y" * 300: "too long",
    }
    for name, said in wrong.items():
        with user_error("output: ", said):
            main(words(command | {"--output": str(tmp_path / name), "model.path": "/nowhere"}))
    with user_error("output: memory://a is in the memory of one process"):
        main(words(command | {"--output": "memory://a", "model.path": "/nowhere"}))
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in.jsonl", "link"]


@pytest.mark.long
def test_a_dry_run_makes_no_folders(command: dict[str, str], tmp_path: Path) -> None:
    output = str(tmp_path / "a" / "b" / "c")
    assert generate.main([*words(command | {"--output": output}), "--dry-run", "--sample-seconds", "0"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.long
def test_adapters_that_no_class_names_are_listed_once(
    command: dict[str, str], tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [name for name in tiny.ADAPTERS if name not in ("red", "glad")]
    changed = command | {"router.path": str(tiny.make_router(tmp_path / "few", tiny_model, labels=few))}
    lines: list[str] = []
    job = GenerateJob(read_settings(parsed(changed)), lines.append)
    assert job.prepare().unnamed == job.prepare().unnamed == ["glad", "red"]
    expected = "2 adapter(s) of the bank are in no class of the router, so no record gets them: glad, red"
    assert lines[1:] == [f"{expected} (loraloom add-adapter)"]
    assert route.main(words({**changed, "--output": str(tmp_path / "routes")})[:-1]) == 0
    assert expected in capsys.readouterr().out
    assert GenerateJob(read_settings(parsed(command)), lines.append).prepare().unnamed == []
    assert len(lines) == 3  # with the engine of each job


@pytest.mark.parametrize("name", ["input", "output"])
def test_memory_that_only_the_driver_has_is_refused(command: dict[str, str], name: str) -> None:
    with pytest.raises(UserError, match=f"{name}: memory://a is in the memory of one process"):
        generate.main(words(command | {f"--{name}": "memory://a", "model.path": "/nowhere"}))


@pytest.mark.parametrize("main", [generate.main, route.main])
def test_a_wrong_input_is_told_before_the_model_is_looked_at(command: dict[str, str], main: Job) -> None:
    Path(command["--input"]).write_text(json.dumps([{"prompt": "red1"}]))
    with pytest.raises(UserError, match="is one JSON array"):
        main(words(command | {"model.path": "/nowhere"}))


def test_an_input_in_the_output_folder_is_refused(command: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lies in the output folder; give another --output"):
        generate.main(words(command | {"--output": str(tmp_path)}))
    with pytest.raises(UserError, match="lies in the output folder; give another --output"):
        route.main(words(command | {"--output": str(tmp_path)}))


@pytest.mark.parametrize("more", [[], ["--new-run"], ["--dry-run"]])
@pytest.mark.parametrize("name", ["README.md", "report.html", "batch_output.jsonl", "data/a.parquet"])
def test_files_of_others_in_the_output_are_refused_by_name(command: dict[str, str], name: str, more: list[str]) -> None:
    file = Path(command["--output"]) / name
    file.parent.mkdir(parents=True)
    file.write_text("of others")
    batch = ["input=openai_batch"] if name.startswith("batch") else []
    if batch:
        request = {"custom_id": "a", "url": "/v1/completions", "body": {"prompt": "red1"}}
        Path(command["--input"]).write_text(json.dumps(request))
    with pytest.raises(UserError, match=f"holds {name}, which no run has written there"):
        generate.main([*words(command), *batch, *more])
    assert file.read_text() == "of others"
    assert [path for path in Path(command["--output"]).rglob("*") if path.is_file()] == [file]


def test_an_output_below_the_input_is_no_input(command: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "all" / "out"
    (output / "data").mkdir(parents=True)
    (output / "data" / "w000000-x-000000.parquet").write_bytes(b"")
    (tmp_path / "all" / "in.jsonl").symlink_to(command["--input"])
    changed = command | {"--input": str(tmp_path / "all"), "--output": str(output)}
    settings = read_settings(parsed(changed))
    assert GenerateJob(settings).prepare().plan.rows == 4


def test_a_model_without_safetensors_is_refused(command: dict[str, str], tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(command["model.path"], model)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "model.safetensors cannot be read" in refusal(command | {"model.path": str(model)})
    weights.write_text(LFS_POINTER)
    assert "model.safetensors cannot be read: it is a Git LFS pointer" in refusal(command | {"model.path": str(model)})
    weights.rename(model / "pytorch_model.bin")
    assert "has no *.safetensors" in refusal(command | {"model.path": str(model)})


def test_an_empty_folder_is_refused(command: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "input: no file at" in refusal(command | {"--input": str(tmp_path / "empty")})


def test_an_adapter_of_another_model_is_refused(command: dict[str, str], tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    shutil.copytree(command["bank.path"], bank)
    tiny.make_adapter(bank / "red", {"model.layers.0.self_attn.q_proj": (64, 64)}, rank=2, seed=0)
    assert "bank: adapter 'red' was trained for model.layers.0.self_attn.q_proj of 64 to 64" in refusal(
        command | {"bank.path": str(bank)}
    )


def test_a_pickled_adapter_is_refused(command: dict[str, str], tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    shutil.copytree(command["bank.path"], bank)
    (bank / "cold" / "adapter_model.safetensors").rename(bank / "cold" / "adapter_model.bin")
    assert "bank: adapter 'cold': it has no adapter_model.safetensors, but adapter_model.bin: pickle" in refusal(
        command | {"bank.path": str(bank)}
    )


def run_command(command: dict[str, str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, "-m", "jobs.generate", *words(command)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_the_command_exits_2_without_a_traceback(command: dict[str, str]) -> None:
    done = run_command(command | {"--input": "/nowhere.jsonl"})
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == ["input: cannot read /nowhere.jsonl: no such file"]


@pytest.mark.slow
@pytest.mark.ray
def test_the_command_exits_0_and_prints_what_it_did_and_1_over_the_budget(
    command: dict[str, str], tmp_path: Path
) -> None:
    done = run_command(command)
    assert done.returncode == 0, done.stderr
    assert "4 in, 4 committed, 0 dead" in done.stdout
    assert "Traceback" not in done.stderr
    run: dict[str, Any] = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["state"] == "finished"
    assert run["counts"]["data"] == 4
    assert set(run["fingerprints"]) == {"model", "bank", "router", "tokenizer"}
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()
    with Path(command["--input"]).open("a") as f:
        f.write("{broken\n")
    over = run_command(command | {"--output": str(tmp_path / "out2"), "errors.budget": "0.1"})
    assert over.returncode == 1
    # In the same words whether the job saw it while it ran, or at its end.
    assert "1 dead letters, over errors.budget=0.1 of 5 records: 1 InvalidJson; " in over.stderr
