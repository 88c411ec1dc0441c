"""From the config of each engine to the settings of the stages."""

import pytest

from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.errors import UserError
from pipeline.from_config import job_settings
from pipeline.pools import pools_of

TWO_GPUS = ("cluster.stages.generate.gpus=2", "cluster.stages.generate.tensor_parallel=2")


def config(*words: str) -> GenerateConfig:
    return load_settings("generate", list(words), GenerateConfig)


def test_each_engine_has_the_settings_of_its_group() -> None:
    native = job_settings(config("engine.adapter_slots=8", "engine.kv_tokens=512"), "", "").engine
    assert (native.vllm, native.lora.adapter_slots, native.kv_tokens, native.batch_size) == (None, 8, 512, 32)
    words = ("engine=vllm", "engine.max_loras=4", "engine.over_rank=native", "engine.kv_gb=1.5", "seed=7", *TWO_GPUS)
    vllm = job_settings(config(*words), "", "").engine
    assert vllm.vllm == VllmSettings(4, "native", None, 1.5, 2)
    assert (vllm.batch_size, vllm.prefill_tokens, vllm.seed) == (256, 8192, 7)


def test_one_model_over_several_gpus_is_for_vllm_alone() -> None:
    assert pools_of(config("engine=vllm", *TWO_GPUS)).generate.gpus == 2
    with pytest.raises(UserError, match=r"the native engine runs a model on one GPU.* engine=vllm"):
        pools_of(config(*TWO_GPUS))
    with pytest.raises(UserError, match="tensor_parallel=2 needs as many GPUs for each actor"):
        pools_of(config("engine=vllm", TWO_GPUS[1]))


@pytest.mark.parametrize("words", [TWO_GPUS, TWO_GPUS[:1]])
def test_what_the_native_engine_may_have_to_answer_has_one_gpu_too(words: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"over_rank=native with .*the native engine, which would answer,.* one GPU"):
        pools_of(config("engine=vllm", "engine.over_rank=native", *words))
    assert pools_of(config("engine=vllm", "engine.over_rank=native", "cluster.stages.generate.gpus=1"))
