"""The smaller commands: train adapters, train a router, route, evaluate."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from jobs import add_adapter, evaluate, route, train_adapters, train_router
from jobs._cli import Job
from pipeline.adapters import AdapterBank
from pipeline.errors import UserError
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.routing import RoutingPolicy
from pipeline.routing.loading import load_router
from tests import tiny
from tests.adapters.peft_cases import sharded
from tests.storage import user_error


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks: answer with the first or with the last word."""
    rows = []
    for task, place in (("red", 0), ("cold", -1)):
        for i, prompt in enumerate(tiny.prompts_of(task, 60)):
            rows.append({"id": f"{task}{i}", "task": task, "prompt": prompt, "answer": prompt.split()[place]})
    path = tmp_path_factory.mktemp("labelled") / "train.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def model_words(model: Path) -> list[str]:
    return ["model=custom", f"model.path={model}", "model.dtype=fp32"]


@pytest.mark.long
def test_adapters_are_trained_resumed_and_load_in_peft(
    labelled: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = tmp_path / "bank"
    command = ["--data", str(labelled), "--output", str(bank), *model_words(tiny_model)]
    command += ["training.steps=40", "training.evaluate_every=20", "training.learning_rate=1e-2"]
    assert train_adapters.main([*command, "--task", "red"]) == 0
    record = json.loads((bank / "red" / "training.json").read_text())
    losses = [entry["validation_loss"] for entry in record["history"]]
    assert record["best_validation_loss"] == min(losses[1:]) < 0.9 * losses[0]
    weights = (bank / "red" / "adapter_model.safetensors").read_bytes()
    assert train_adapters.main(command) == 0
    assert "1 of 2 adapters are there already" in capsys.readouterr().out
    assert (bank / "red" / "adapter_model.safetensors").read_bytes() == weights
    assert AdapterBank.load(bank).names == ["cold", "red"]
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), bank / "cold")
    again = tmp_path / "again"
    command[3] = str(again)
    assert train_adapters.main([*command, "--task", "red"]) == 0
    assert (again / "red" / "adapter_model.safetensors").read_bytes() == weights


@pytest.mark.long
def test_a_router_is_trained_and_routes(
    labelled: Path, tiny_model: Path, tiny_bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    router = tmp_path / "router"
    words = model_words(tiny_model)
    command = ["--data", str(labelled), "--output", str(router), *words]
    assert train_router.main([*command, "training.epochs=20", "training.batch_size=8"]) == 0
    assert load_router(router).card["metrics"]["held_out_accuracy"] == 1.0
    source = tmp_path / "in.jsonl"
    prompts = [("a", "red1 red2 red3"), ("b", "cold1 cold5 cold3"), ("c", "cold2 cold4 cold1")]
    source.write_text("".join(json.dumps({"id": i, "prompt": p}) + "\n" for i, p in prompts) + "{bad\n")
    words += ["bank=custom", f"bank.path={tiny_bank}", "router=custom", f"router.path={router}", "routing.gate=false"]
    assert route.main(["--input", str(source), "--output", str(tmp_path / "routes"), *words]) == 0
    printed = capsys.readouterr().out
    assert "3 records routed to 2 distinct mixtures, 1 refused" in printed
    assert "66.7%  cold:1.0" in printed
    table = pq.read_table(tmp_path / "routes" / "routes.parquet")
    assert dict(zip(table["id"].to_pylist(), table["adapters"].to_pylist(), strict=True)) == {
        "a": ["red"],
        "b": ["cold"],
        "c": ["cold"],
    }


@pytest.mark.long
def test_a_router_is_made_without_training(labelled: Path, tiny_model: Path, tmp_path: Path) -> None:
    router = tmp_path / "router"
    command = ["--data", str(labelled), "--output", str(router), "--method", "centroids", *model_words(tiny_model)]
    assert train_router.main([*command, "--fallback", "nearest", "centroids.examples=16"]) == 0
    loaded = load_router(router)
    assert (loaded.kind, loaded.labels, loaded.fallback) == ("centroids", ["cold", "red"], "nearest")
    encode = PromptFormat(load_tokenizer(str(tiny_model))).encode
    for name in loaded.labels:
        routes = loaded.route(encode(tiny.prompts_of(name, 20, seed=9)), RoutingPolicy(gate=False))
        assert sum(route.mixture.adapters == (name,) for route in routes) >= 18, name


@pytest.mark.long
def test_an_adapter_is_added_without_retraining(
    tiny_model: Path, tiny_bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [name for name in tiny.ADAPTERS if name != "glad"]
    router, bank = tiny.make_router(tmp_path / "router", tiny_model, labels=known), tmp_path / "bank"
    for name in known:
        shutil.copytree(tiny_bank / name, bank / name)
    (tmp_path / "examples.jsonl").write_text(
        "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in tiny.prompts_of("glad", 12, seed=5))
    )
    source = shutil.copytree(tiny_bank / "glad", tmp_path / "trained" / "checkpoint-9")
    sharded(True)(source)
    command = ["--bank", str(bank), "--router", str(router), "--adapter", str(source)]
    command += ["--examples", str(tmp_path / "examples.jsonl"), *model_words(tiny_model)]
    before = load_router(router)
    with pytest.raises(UserError, match=r"is a checkpoint of a training; give the adapter a name \(--name\)"):
        add_adapter.main(command)
    command += ["--name", "glad"]
    assert add_adapter.main(command) == 0
    assert "glad: added from 12 examples" in capsys.readouterr().out
    after = load_router(router)
    assert after.labels == [*before.labels, "glad"]
    assert after.fingerprint != before.fingerprint
    assert AdapterBank.load(bank).names == sorted(tiny.ADAPTERS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bank", "examples.jsonl", "router", "trained"]
    policy, encode = RoutingPolicy(), PromptFormat(load_tokenizer(str(tiny_model))).encode
    for name in tiny.ADAPTERS:
        routes = after.route(encode(tiny.prompts_of(name, 20, seed=9)), policy)
        assert sum(route.mixture.adapters == (name,) for route in routes) >= 18, name
    with pytest.raises(UserError, match="has a class 'glad' already"):
        add_adapter.main(command)


@pytest.mark.long
def test_an_adapter_that_cannot_be_added_leaves_bank_and_router_as_they_were(
    tiny_model: Path, tiny_bank: Path, tmp_path: Path
) -> None:
    router, bank = tiny.make_router(tmp_path / "router", tiny_model, labels=["red", "cold"]), tmp_path / "bank"
    for name in ("red", "cold"):
        shutil.copytree(tiny_bank / name, bank / name)
    files = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    few, good = tmp_path / "few.jsonl", tmp_path / "good.jsonl"
    for path, count in ((few, 7), (good, 8)):
        lines = [json.dumps({"prompt": prompt}) + "\n" for prompt in tiny.prompts_of("glad", count)]
        path.write_text("".join(lines))
        files[path] = path.read_bytes()

    def refused(match: str, adapter: Path, examples: Path, *words: str) -> None:
        command = ["--bank", str(bank), "--router", str(router), "--adapter", str(adapter), "--examples", str(examples)]
        with pytest.raises(UserError, match=match):
            add_adapter.main([*command, *model_words(tiny_model), *words])
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == files

    refused("7 example", tiny_bank / "glad", few)
    refused("another adapter 'red'", tiny_bank / "glad", good, "--name", "red")
    refused("cannot be the name", tiny_bank / "glad", good, "--name", "../red")
    refused("no adapter nowhere", tiny_bank / "nowhere", good)
    refused("already", tiny_bank / "red", good)


def test_unknown_tasks_and_missing_columns_are_named(labelled: Path, tiny_model: Path, tmp_path: Path) -> None:
    words = [*model_words(tiny_model), "--output", str(tmp_path / "x")]
    with pytest.raises(UserError, match="has no task blue; it has cold, red"):
        train_router.main(["--data", str(labelled), "--task", "blue", *words])
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "bare.parquet")
    with pytest.raises(UserError, match=r"lacks the column\(s\) task, answer; it has prompt"):
        train_adapters.main(["--data", str(tmp_path / "bare.parquet"), *words])
    with pytest.raises(UserError, match="cannot read"):
        train_router.main(["--data", str(tmp_path / "none.parquet"), *words])


@pytest.mark.parametrize("task", ["..", "", ".", "a/b", "/tmp/x"])
def test_a_task_that_is_no_plain_name_is_refused_before_any_file_is_touched(
    tiny_model: Path, tmp_path: Path, task: str
) -> None:
    pq.write_table(pa.table({"task": [task], "prompt": ["a"], "answer": ["b"]}), tmp_path / "data.parquet")
    (tmp_path / "bank").mkdir()
    command = ["--data", str(tmp_path / "data.parquet"), "--output", str(tmp_path / "bank"), *model_words(tiny_model)]
    with pytest.raises(UserError, match="cannot be the name of an adapter"):
        train_adapters.main(command)
    assert (tmp_path / "bank").is_dir()


def test_evaluate_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no run.json at"):
        evaluate.main(["--run", str(tmp_path)])


def test_adapters_of_others_are_never_replaced(labelled: Path, tmp_path: Path) -> None:
    weights = tmp_path / "bank" / "red" / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"of others")
    with pytest.raises(UserError, match="red was not trained by this command; give another --output"):
        train_adapters.main(["--data", str(labelled), "--output", str(tmp_path / "bank"), *model_words(tmp_path)])
    assert weights.read_bytes() == b"of others"


@pytest.mark.parametrize("main", [train_adapters.main, train_router.main])
def test_an_output_that_cannot_be_used_is_told_before_the_data_is_read(main: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    words = ["--data", str(tmp_path / "none.parquet"), "--output"]
    with user_error(f"output: {tmp_path}/file is a file; give a folder"):
        main([*words, str(tmp_path / "file")])
    with user_error(f"output: cannot write to {tmp_path}/file/bank"):
        main([*words, str(tmp_path / "file" / "bank")])
    assert (tmp_path / "file").read_text() == "mine"


def test_a_router_json_of_others_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "router.json").write_text('{"routes": []}')
    with user_error(f"output: {tmp_path} holds another router.json; give another --output"):
        train_router.main(["--data", str(tmp_path / "none.parquet"), "--output", str(tmp_path)])
    assert (tmp_path / "router.json").read_text() == '{"routes": []}'
