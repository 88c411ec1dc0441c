"""Loading a base model and its tokenizer with transformers."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..errors import UserError

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_dtype(name: str, device: str = "cpu") -> torch.dtype:
    """Return the torch dtype of ``fp32 | bf16 | fp16 | auto``; ``auto`` is bf16 where the hardware computes in it."""
    if name != "auto":
        return _DTYPES[name]
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def load_config(folder: str, trust_remote_code: bool = False) -> Any:
    """Read the transformers config of a model folder or hub id."""
    return _loading(folder, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))


def load_tokenizer(folder: str, trust_remote_code: bool = False) -> Any:
    """Load the fast tokenizer of a model folder or hub id."""
    return _loading(folder, lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code))


def load_model(folder: str, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False) -> Any:
    """Load a causal language model for inference: in ``eval`` mode, no gradients, on ``device``, safetensors only."""
    model = _loading(
        folder,
        lambda: AutoModelForCausalLM.from_pretrained(
            folder, dtype=pick_dtype(dtype, device), use_safetensors=True, trust_remote_code=trust_remote_code
        ),
    )
    return model.to(device).eval().requires_grad_(False)


def _loading(folder: str, load: Any) -> Any:
    try:
        return load()
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"model: cannot load {folder}: {reason}") from error
