"""From the config of each engine to the settings of the stages."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest

from conf.compose import saved_settings
from conf.generate import load_config
from conf.schema import GenerateConfig
from pipeline.adapters import AdapterBank
from pipeline.engine import Outcome, Request, Sampling
from pipeline.engine.backend import BackendSpec, Capabilities, EngineContext, EngineLoad
from pipeline.engine.registry import BACKENDS
from pipeline.engine.settings import BackendSettings, EngineSettings, LoraSettings, PositiveInt
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.errors import UserError
from pipeline.from_config import engine_settings
from pipeline.job.preflight import check_models, prepare
from pipeline.pools import pools_of
from pipeline.records import Completion, Record
from pipeline.routing import SentenceSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords
from pipeline.storage.input.read import staged_table
from pipeline.storage.output.run import RunFolder
from tests import tiny
from tests.stages import tiny_job

TWO_GPUS = ("cluster.stages.generate.gpus=2", "cluster.stages.generate.tensor_parallel=2")


def config(*words: str) -> GenerateConfig:
    return load_config(words)


def test_each_engine_has_the_settings_of_its_group() -> None:
    native = engine_settings(config("engine.lora.adapter_slots=8", "engine.kv_tokens=512"))
    assert native == EngineSettings(kv_tokens=512, lora=LoraSettings(adapter_slots=8))
    words = ("engine=vllm", "engine.adapter_slots=4", "engine.kv_gb=1.5", "seed=7", *TWO_GPUS)
    vllm = VllmSettings(adapter_slots=4, kv_gb=1.5, tensor_parallel=2, seed=7)
    assert engine_settings(config(*words)) == vllm
    assert (vllm.batch_size, vllm.prefill_tokens) == (256, 8192)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_defaults_of_the_config_are_those_of_the_settings(name: str) -> None:
    assert engine_settings(config(f"engine={name}")) == BACKENDS[name].settings()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["engine.batch_size=0"], "config: engine.batch_size: Input should be greater than 0 (got 0)"),
        (["engine.lora.mode=fast"], "config: engine.lora.mode: Input should be 'auto', 'union', 'gather' or 'merged'"),
        (["engine.lora.adapter_slots=-1"], "config: engine.lora.adapter_slots: Input should be greater than or equal"),
        (["+engine.lora.mods=1"], "config: unknown key engine.lora.mods; did you mean engine.lora.mode?"),
        (["+engine.seed=1"], "config: unknown key engine.seed; did you mean seed?"),
        (["engine=native", "+engine.adapter_slots=1"], "config: unknown key engine.adapter_slots; "),
        (["engine=vllm", "engine.adapter_slots=0"], "config: engine.adapter_slots: Input should be greater than 0"),
        (["engine=vllm", "engine.kv_gb=-1"], "config: engine.kv_gb: Input should be greater than or equal to 0"),
        (["engine.backend=sglang"], "config: engine has no option 'sglang'; it has auto, native, vllm"),
    ],
)
def test_the_keys_of_an_engine_are_checked_as_all_others(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config(*words)
    assert str(caught.value).startswith(message)


def test_the_config_of_an_engine_is_whole_when_it_is_shown() -> None:
    shown = config("engine=vllm").model_dump(mode="json")["engine"]
    assert {"backend", "adapter_slots", "hang_seconds", "batch_size"} <= set(shown)
    assert config("engine=native").model_dump(mode="json")["engine"]["lora"] == {"mode": "auto", "adapter_slots": 0}


def test_one_model_over_several_gpus_is_for_vllm_alone() -> None:
    assert pools_of(config("engine=vllm", *TWO_GPUS)).generate.gpus == 2
    with pytest.raises(UserError, match=r"the native engine runs a model on one GPU.* engine=vllm"):
        pools_of(config("engine=native", *TWO_GPUS))
    with pytest.raises(UserError, match="tensor_parallel=2 needs as many GPUs for each actor"):
        pools_of(config("engine=vllm", TWO_GPUS[1]))


@dataclass(frozen=True)
class EchoSettings(BackendSettings):
    backend: ClassVar[str] = "echo"
    times: PositiveInt = 1


class Echo:
    """Answers with the prompt's tokens, counted so many times."""

    def __init__(self, settings: EchoSettings, context: EngineContext) -> None:
        self.settings, self.context = settings, context

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        text = self.context.tokenizer.decode
        counts = [len(request.tokens) for request in requests]
        answers = zip(requests, counts, strict=True)
        return [
            Completion(text(r.tokens) * self.settings.times, "stop", n, n * self.settings.times) for r, n in answers
        ]

    def load(self) -> EngineLoad:
        return EngineLoad(0, 1, 0, 0, 0, 1, 0, 0)

    def close(self) -> None:
        pass


def check_echo(settings: EchoSettings, bank: AdapterBank, max_adapters: int) -> None:
    if "silent" in bank.names:
        raise UserError("bank: adapter 'silent' cannot be echoed")


ECHO = BackendSpec(
    EchoSettings,
    lambda settings: Capabilities("echoes have no sentences", "", "echoes need no GPU", 1.5),
    Echo,
    check_echo,
)


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An engine that only this test knows; the values of its config."""
    monkeypatch.setitem(BACKENDS, "echo", ECHO)
    shared = {*fields_of(BackendSettings), "hang_seconds", "actors", "threads"}
    return config("engine=native").engine.model_dump(include=shared) | {"backend": "echo", "times": 2}


def fields_of(settings: type[BackendSettings]) -> list[str]:
    return [field.name for field in fields(settings)]


def echo_config(values: dict[str, Any], *words: str) -> GenerateConfig:
    return saved_settings(config().model_dump() | {"engine": values}, list(words), GenerateConfig)


@pytest.mark.long
def test_a_new_engine_needs_nothing_but_its_spec_and_its_values(
    echo: dict[str, Any], tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"prompt": "red1"}\n')
    settings = tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router, engine=engine_settings(echo_config(echo)))
    assert settings.engine == EchoSettings(times=2)
    prepared = prepare(settings, RunFolder(settings.output))
    assert prepared.guard["engine.backend"] == "echo"
    prompts = ["red1", "cold2 cold3"]
    records = [Record(i, str(i), prompt) for i, prompt in enumerate(prompts)]
    routed = RouteRecords(settings, prepared.context)(staged_table(records, pa.schema([])))
    rows = GenerateRecords(settings, "cpu", 1)(routed).to_pylist()
    assert [row["output"].replace(" ", "") for row in rows] == ["red1" * 2, "cold2cold3" * 2]
    assert [row["completion_tokens"] for row in rows] == [2 * row["prompt_tokens"] for row in rows]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sentences": SentenceSettings("en", 2, 8)}, "config: routing.granularity=sentence: echoes have no sentences"),
        (
            {"sampling": Sampling(temperature=2.0)},
            "config: generation: engine=echo: temperature 2: the engine takes 1.5",
        ),
    ],
)
def test_what_a_new_engine_cannot_do_is_refused(
    echo: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    settings = tiny_job(tmp_path, tmp_path, tmp_path, tmp_path, engine=EchoSettings())
    with pytest.raises(UserError, match=message):
        check_models(replace(settings, **changes))


@pytest.mark.long
def test_a_new_engine_checks_its_config_its_gpus_and_its_bank(
    echo: dict[str, Any], tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    with pytest.raises(UserError, match=r"config: engine\.times: Input should be greater than 0"):
        echo_config(echo, "engine.times=0")
    with pytest.raises(UserError, match=r"unknown key engine\.time; did you mean engine\.times\?"):
        echo_config(echo, "engine.time=1")
    with pytest.raises(UserError, match=r"gpus=2\.0: echoes need no GPU"):
        pools_of(echo_config(echo, "cluster.stages.generate.gpus=2"))
    shutil.copytree(tiny_bank, tmp_path / "bank")
    tiny.make_adapter(tmp_path / "bank" / "silent", {"model.layers.0.mlp.up_proj": (48, 64)}, 4, 0)
    settings = tiny_job(tmp_path, tiny_model, tmp_path / "bank", tiny_router, engine=EchoSettings())
    with pytest.raises(UserError, match="adapter 'silent' cannot be echoed"):
        check_models(settings)
