"""Base models in 8 or 4 bits, where the library bitsandbytes is installed."""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from transformers import BitsAndBytesConfig

from pipeline.errors import UserError

Quantization = Literal["none", "8bit", "4bit"]
"""``8bit``: LLM.int8() (arXiv 2208.07339). ``4bit``: NF4 (arXiv 2305.14314)."""


def check_quantization(quantization: Quantization) -> None:
    """`UserError` where the library is not installed."""
    if quantization != "none" and find_spec("bitsandbytes") is None:
        raise UserError(
            f"config: model.quantization={quantization} needs the package bitsandbytes: pip install loraloom[quantized]"
        )


def quantization_options(quantization: Quantization, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Options of ``from_pretrained``: layers but the head in 8 or 4 bits, activations in ``dtype``."""
    check_quantization(quantization)
    if quantization == "none":
        return {}
    config = BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit",
        load_in_4bit=quantization == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": device}
