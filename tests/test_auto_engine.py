"""The engine of a command: from its config, the run that it continues, the machine, or what the job needs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from conf.generate import load_config
from jobs import generate
from pipeline.auto_engine import Chosen, any_engine, choose_engine
from pipeline.batches import Generate
from pipeline.engine import registry
from pipeline.engine.vllm import SPEC
from pipeline.errors import UserError
from pipeline.from_config import job_settings
from pipeline.job.generate import GenerateJob
from pipeline.job.preflight import prepare
from pipeline.storage.output.run import RUN, RunFolder
from tests import tiny

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine's package is installed, wherever the tests run."""
    monkeypatch.setattr(registry, "find_spec", lambda name: None)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """vLLM seems installed and takes every model; the configs of models that it was asked for."""
    asked: list[Any] = []
    spec = replace(SPEC, auto_problem=lambda config: asked.append(config) or "")
    monkeypatch.setattr(registry, "find_spec", lambda name: name)
    monkeypatch.setitem(registry.BACKENDS, "vllm", spec)
    return asked


@pytest.fixture
def words(tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> list[str]:
    return [
        *("model=custom", f"model.path={tiny_model}", "model.dtype=fp32", "bank=custom", f"bank.path={tiny_bank}"),
        *("router=custom", f"router.path={tiny_router}", "generation.max_new_tokens=4"),
    ]


def chosen(words: list[str], **options: Any) -> Chosen:
    return choose_engine(words, load_config(words), **options)


def engine_of(words: list[str], **options: Any) -> tuple[str, str]:
    """The engine and the reason, after checking that the config has that engine."""
    found = chosen(words, **options)
    assert found.config.engine.backend == found.choice.name
    return found.choice.name, found.choice.reason


@pytest.mark.long
def test_words_that_name_an_engine_are_followed() -> None:
    assert engine_of(["engine=vllm"]) == ("vllm", "the config names it")
    assert engine_of(["engine=auto", "engine=native"]) == ("native", "the config names it")
    assert engine_of(["engine.kv_gb=2"]) == ("vllm", "engine.kv_gb is a setting of it")
    assert engine_of(["engine=auto", "engine.lora.mode=merged"])[0] == "native"


@pytest.mark.long
def test_without_vllm_the_native_engine_answers_with_its_own_defaults() -> None:
    assert engine_of([]) == engine_of(["engine=auto"]) == ("native", "the package vllm is not installed")
    engine = chosen(["engine.prefill_tokens=64"]).config.engine.model_dump()
    assert (engine["batch_size"], engine["prefill_tokens"]) == (32, 64)


@pytest.mark.long
@pytest.mark.usefixtures("installed")
def test_this_machine_is_asked_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert engine_of([]) == ("native", "there is no GPU for it")


@pytest.mark.long
def test_a_config_without_gpus_is_followed(installed: list[Any], words: list[str]) -> None:
    assert engine_of([*words, "cluster.stages.generate.gpus=0"]) == ("native", "there is no GPU for it")
    assert engine_of([*words, "cluster.stages.generate.gpus=0.5"])[0] == "vllm"


@pytest.mark.long
def test_vllm_is_taken_with_its_own_defaults(installed: list[Any], words: list[str]) -> None:
    found = chosen([*words, "engine.prefill_tokens=64"], gpus=1)
    engine = found.config.engine.model_dump()
    assert (engine["backend"], engine["batch_size"], engine["prefill_tokens"]) == ("vllm", 256, 64)
    assert load_config(found.words) == found.config
    assert [config.architectures for config in installed] == [["LlamaForCausalLM"]]


@pytest.mark.long
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("model.quantization=4bit", "model.quantization=4bit: engine=vllm does not load such models; use engine="),
        ("generation.temperature=3", "generation: engine=vllm: temperature 3: the engine takes 2 at most"),
    ],
)
def test_a_job_that_vllm_refuses_is_for_the_native_engine(words: list[str], word: str, reason: str) -> None:
    name, why = engine_of([*words, word], gpus=1)
    assert name == "native"
    assert why.startswith(reason)


@pytest.mark.long
@pytest.mark.usefixtures("installed")
def test_a_bank_that_vllm_refuses_is_for_the_native_engine(words: list[str], tmp_path: Path) -> None:
    for number, name in enumerate(tiny.ADAPTERS):
        tiny.make_adapter(tmp_path / name, {"model.layers.0.mlp.up_proj": (48, 64)}, 513, number)
    assert engine_of([*words, f"bank.path={tmp_path}"], gpus=1)[1].startswith("bank: adapter 'cold' has rank 513")


@pytest.mark.long
def test_a_model_that_vllm_does_not_have(installed: list[Any], words: list[str], monkeypatch: Any) -> None:
    monkeypatch.setitem(registry.BACKENDS, "vllm", replace(SPEC, auto_problem=lambda config: "vLLM has no model X"))
    assert engine_of(words, gpus=1) == ("native", "vLLM has no model X")


@pytest.mark.long
@pytest.mark.usefixtures("installed")
def test_a_run_keeps_its_engine_wherever_it_continues(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "red1"}\n')
    source, output = str(tmp_path / "in.jsonl"), str(tmp_path / "out")
    guard = prepare(job_settings(load_config([*words, "engine=vllm"]), source, output), RunFolder(output)).guard
    RunFolder(output).write_json(RUN, {"guard": guard, "schemas": {}})
    assert engine_of(words, output=output, gpus=0) == ("vllm", f"the run at {output} has it")
    assert engine_of(words, output=str(tmp_path / "none"), gpus=0)[0] == "native"


@pytest.mark.long
def test_a_run_of_vllm_is_refused_where_it_is_not_installed(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "red1"}\n')
    output = str(tmp_path / "out")
    RunFolder(output).write_json(RUN, {"guard": {"engine.backend": "vllm"}, "schemas": {}})
    with pytest.raises(UserError, match=r"^config: engine=vllm needs the package vllm: pip install .*$"):
        generate.main(["--input", str(tmp_path / "in.jsonl"), "--output", output, *words])


@pytest.mark.long
def test_what_loads_no_engine_asks_nothing(installed: list[Any]) -> None:
    assert any_engine([]).engine.backend == "native"
    assert any_engine(["engine=vllm"]).engine.backend == "vllm"
    assert installed == []


@pytest.mark.long
def test_batches_are_answered_on_their_own_device(words: list[str]) -> None:
    answering = Generate([*words, "routing.gate=false"], device="cpu", threads=1)
    assert answering.config.engine.backend == "native"
    assert answering([{"prompt": "red1"}])["output"].null_count == 0


def test_the_engine_and_the_reason_are_shown(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert generate.main(["--show-config", "engine.batch_size=3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("# engine     native: the package vllm is not installed\n")
    assert yaml.safe_load(said)["engine"]["backend"] == "native"


@pytest.mark.long
def test_a_job_logs_its_engine_before_any_work(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"prompt": "red1"}\n')
    found, lines = chosen(words), list[str]()
    settings = job_settings(found.config, str(tmp_path / "in.jsonl"), str(tmp_path / "out"), None, found.choice.reason)
    GenerateJob(settings, lines.append).prepare()
    assert lines == ["engine     native: the package vllm is not installed"]


@pytest.mark.long
def test_a_machine_without_vllm_loads_no_torch_to_know() -> None:
    code = (
        "import sys; from conf.generate import load_config; from pipeline.auto_engine import choose_engine;"
        "from pipeline.engine import registry; registry.find_spec = lambda name: None;"
        "print(choose_engine([], load_config([])).choice.name, {'torch', 'ray', 'vllm'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "native set()\n"
