"""Models of common shapes with random weights: the speed of a pass does not depend on their values."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from pipeline.models import pick_dtype

# As in the config.json of meta-llama/Llama-3.2-1B, Llama-3.2-3B and Llama-3.1-8B (rotary scaling left out).
_COMMON = {"num_key_value_heads": 8, "vocab_size": 128_256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "llama-3.2-3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}


def config_of(shape: str) -> LlamaConfig:
    """Return the config of one of `SHAPES`."""
    return LlamaConfig(**_COMMON, **SHAPES[shape], bos_token_id=None, eos_token_id=None, pad_token_id=None)


def random_model(shape: str, dtype: str, device: str) -> Any:
    """Return a model of one of `SHAPES` with random weights, the same at each call."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config_of(shape), dtype=pick_dtype(dtype, device))
    return model.eval().requires_grad_(False)
