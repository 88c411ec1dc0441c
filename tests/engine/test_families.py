"""Families of models against plain `generate` of transformers; those that do not fit are refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GptOssConfig,
    JambaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Request, Sampling, base_shapes
from pipeline.engine.settings import EngineSettings
from pipeline.errors import UserError
from pipeline.models import load_tokenizer
from pipeline.records import Completion, Mixture
from tests import tiny

NEW = 24
SIZES: dict[str, Any] = {
    "vocab_size": 640,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": tiny.CONTEXT,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": None,
    "initializer_range": 0.2,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 6,
    "long_factor": [4.0] * 6,
    "original_max_position_embeddings": 128,
}
FAMILIES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": tiny.llama_config,
    "gpt2": tiny.gpt2_config,
    "qwen2": lambda: Qwen2Config(**SIZES),
    "qwen2 with a window": lambda: Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=2),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=16),
    "gemma2": lambda: Gemma2Config(**SIZES, head_dim=16, sliding_window=9, query_pre_attn_scalar=16),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=9, query_pre_attn_scalar=16),
    "mistral with a window": lambda: MistralConfig(**SIZES, sliding_window=9),
    "mixtral": lambda: MixtralConfig(**SIZES, num_local_experts=4),
    "phi": lambda: PhiConfig(**SIZES, partial_rotary_factor=0.5),
    "phi3": lambda: Phi3Config(**SIZES),
    "phi3 with long positions": lambda: Phi3Config(
        **SIZES | {"max_position_embeddings": 512}, original_max_position_embeddings=128, rope_parameters=LONG_ROPE
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "olmo2": lambda: Olmo2Config(**SIZES),
}
# Nearly like others of these in what the engine does.
ALIKE = (
    *("qwen2", "qwen3", "mistral with a window", "phi3", "phi3 with long positions", "olmo2"),
    *("gemma3", "mixtral", "gpt_neox"),
)
REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "bloom": (lambda: BloomConfig(vocab_size=640, hidden_size=48, n_layer=2, n_head=4), "AttentionInterface"),
    "mamba": (lambda: MambaConfig(vocab_size=640, hidden_size=48, num_hidden_layers=2), "AttentionInterface"),
    "jamba": (lambda: JambaConfig(**SIZES, use_mamba_kernels=False), "JambaForCausalLM"),
    "gpt_oss": (lambda: GptOssConfig(**SIZES, head_dim=16, num_local_experts=4), "attention sinks"),
    "gemma3 in both directions": (
        lambda: Gemma3TextConfig(**SIZES, head_dim=16, use_bidirectional_attention=True),
        "both directions",
    ),
}


def make_engine(config: PretrainedConfig, tiny_model: Path, folder: Path, **settings: Any) -> tuple[Engine, Any]:
    """An engine over a random model of this config, with an adapter for its query projections that is not used."""
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    names = [(n, s) for n, s in base_shapes(model).items() if "embed" not in n and "wte" not in n and "wpe" not in n]
    tiny.make_adapter(folder / "one", dict(names[:1]), rank=2, seed=1)
    bank = AdapterBank.load(folder)
    return Engine(model, load_tokenizer(str(tiny_model)), bank, EngineSettings(**settings)), model


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in FAMILIES]
)
def test_greedy_tokens_equal_those_of_transformers_with_small_chunks_and_a_small_cache(
    name: str, tiny_model: Path, tmp_path: Path
) -> None:
    sizes = [3, 41, 1, 17, 28, 60, 9]
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(1, 600, (size,), generator=generator).tolist() for size in sizes]
    requests = [Request(str(n), prompt, Mixture()) for n, prompt in enumerate(prompts)]
    engine, model = make_engine(
        FAMILIES[name](), tiny_model, tmp_path, batch_size=4, prefill_tokens=7, kv_tokens=300, look_ahead=3
    )
    found = {r.id: answer for r, answer in engine.generate(requests, Sampling(max_new_tokens=NEW))}
    for request in requests:
        theirs = model.generate(torch.tensor([request.tokens]), max_new_tokens=NEW, do_sample=False)
        new = theirs[0, len(request.tokens) :]
        answer = found[request.id]
        assert isinstance(answer, Completion)
        assert answer.completion_tokens == len(new)
        assert answer.output == engine.tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_do_not_fit_are_refused_by_name(name: str, tiny_model: Path, tmp_path: Path) -> None:
    config, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason):
        make_engine(config(), tiny_model, tmp_path)


def test_a_model_with_an_encoder_is_refused(tiny_model: Path, tiny_bank: Path) -> None:
    config = T5Config(vocab_size=640, d_model=48, d_kv=12, d_ff=64, num_layers=2, num_heads=4)
    with pytest.raises(UserError, match="T5ForConditionalGeneration"):
        Engine(
            T5ForConditionalGeneration(config),
            load_tokenizer(str(tiny_model)),
            AdapterBank.load(tiny_bank),
            EngineSettings(),
        )


def test_positions_that_would_change_those_of_other_rows_are_out_of_the_context(
    tiny_model: Path, tmp_path: Path
) -> None:
    engine, _ = make_engine(FAMILIES["phi3 with long positions"](), tiny_model, tmp_path)
    assert engine.context == 128
    assert make_engine(FAMILIES["phi3"](), tiny_model, tmp_path / "other")[0].context == tiny.CONTEXT
