"""From the config of each engine to the settings of the stages."""

import subprocess
import sys

import pytest

from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.engine.registry import BACKENDS
from pipeline.engine.settings import EngineSettings, LoraSettings
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.errors import UserError
from pipeline.from_config import engine_settings
from pipeline.pools import pools_of

TWO_GPUS = ("cluster.stages.generate.gpus=2", "cluster.stages.generate.tensor_parallel=2")


def config(*words: str) -> GenerateConfig:
    return load_settings("generate", list(words), GenerateConfig)


def test_each_engine_has_the_settings_of_its_group() -> None:
    native = engine_settings(config("engine.lora.adapter_slots=8", "engine.kv_tokens=512"))
    assert native == EngineSettings(kv_tokens=512, lora=LoraSettings(adapter_slots=8))
    words = ("engine=vllm", "engine.max_loras=4", "engine.over_rank=native", "engine.kv_gb=1.5", "seed=7", *TWO_GPUS)
    vllm = VllmSettings(max_loras=4, over_rank="native", kv_gb=1.5, tensor_parallel=2, seed=7)
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
        (["+engine.max_loras=1"], "config: unknown key engine.max_loras; "),
        (["engine=vllm", "engine.folder=''"], "config: engine.folder: String should have at least 1 character"),
        (["engine=vllm", "engine.kv_gb=-1"], "config: engine.kv_gb: Input should be greater than or equal to 0"),
        (["engine.backend=sglang"], "config: engine.backend: no engine 'sglang'; the engines are native, vllm"),
    ],
)
def test_the_keys_of_an_engine_are_checked_as_all_others(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config(*words)
    assert str(caught.value).startswith(message)


def test_the_config_of_an_engine_is_whole_when_it_is_shown() -> None:
    shown = config("engine=vllm").model_dump(mode="json")["engine"]
    assert {"backend", "max_loras", "hang_seconds", "batch_size"} <= set(shown)
    assert config().model_dump(mode="json")["engine"]["lora"] == {"mode": "auto", "adapter_slots": 0}


def test_one_model_over_several_gpus_is_for_vllm_alone() -> None:
    assert pools_of(config("engine=vllm", *TWO_GPUS)).generate.gpus == 2
    with pytest.raises(UserError, match=r"the native engine runs a model on one GPU.* engine=vllm"):
        pools_of(config(*TWO_GPUS))
    with pytest.raises(UserError, match="tensor_parallel=2 needs as many GPUs for each actor"):
        pools_of(config("engine=vllm", TWO_GPUS[1]))


@pytest.mark.parametrize("words", [TWO_GPUS, TWO_GPUS[:1]])
def test_what_the_native_engine_may_have_to_answer_has_one_gpu_too(words: tuple[str, ...]) -> None:
    with pytest.raises(
        UserError, match=r"gpus=2\.0: with engine\.over_rank=native the native engine may answer,.* one GPU"
    ):
        pools_of(config("engine=vllm", "engine.over_rank=native", *words))
    assert pools_of(config("engine=vllm", "engine.over_rank=native", "cluster.stages.generate.gpus=1"))


def test_the_registry_loads_neither_torch_nor_vllm() -> None:
    code = "import sys, pipeline.engine.registry; assert not {'torch', 'vllm', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
