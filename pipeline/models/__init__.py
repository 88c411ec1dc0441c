"""The base model: find it, load it, tokenise prompts for it."""

from .load import (
    Quantization,
    check_quantization,
    check_stored,
    check_weights,
    load_config,
    load_generation_config,
    load_model,
    load_skeleton,
    load_token_embeddings,
    load_tokenizer,
    pick_device,
    pick_dtype,
)
from .prompt import PromptFormat
from .resolve import cache_dir, model_fingerprint, resolve_model
from .stored import StoredWeights
from .template import PromptError

__all__ = [
    "PromptError",
    "PromptFormat",
    "Quantization",
    "StoredWeights",
    "cache_dir",
    "check_quantization",
    "check_stored",
    "check_weights",
    "load_config",
    "load_generation_config",
    "load_model",
    "load_skeleton",
    "load_token_embeddings",
    "load_tokenizer",
    "model_fingerprint",
    "pick_device",
    "pick_dtype",
    "resolve_model",
]
