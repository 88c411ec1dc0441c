"""The base model: where it lies, how it is loaded, how it wants its prompts."""

from .load import (
    check_weights,
    load_config,
    load_generation_config,
    load_model,
    load_skeleton,
    load_tokenizer,
    pick_device,
    pick_dtype,
)
from .prompt import PromptFormat
from .quantization import Quantization, check_quantization
from .resolve import resolve_model

__all__ = [
    "PromptFormat",
    "Quantization",
    "check_quantization",
    "check_weights",
    "load_config",
    "load_generation_config",
    "load_model",
    "load_skeleton",
    "load_tokenizer",
    "pick_device",
    "pick_dtype",
    "resolve_model",
]
