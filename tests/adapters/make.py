"""Tiny PEFT adapter folders, written by hand so that every detail can be wrong on purpose."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

# Keys as PEFT 0.21 writes them for plain LoRA.
PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny",
    "r": 4,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
    "rank_pattern": {},
    "alpha_pattern": {},
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "layer_replication": None,
    "inference_mode": True,
}
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
SHAPES = {Q: (8, 8), V: (8, 6)}


def tensor_name(module: str, side: str) -> str:
    """Name of a tensor in PEFT's files."""
    return f"base_model.model.{module}.lora_{side}.weight"


def make_tensors(
    rank: int = 4, seed: int = 0, shapes: dict[str, tuple[int, int]] = SHAPES, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Random A [rank x in] and B [out x rank] of every module."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (inputs, outputs) in shapes.items():
        tensors[tensor_name(module, "A")] = torch.randn(rank, inputs, generator=generator).to(dtype)
        tensors[tensor_name(module, "B")] = torch.randn(outputs, rank, generator=generator).to(dtype)
    return tensors


def make_adapter(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """Write an adapter folder; ``config`` overrules `PLAIN`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = PLAIN | config
    (folder / "adapter_config.json").write_text(json.dumps(values))
    tensors = make_tensors(values["r"]) if tensors is None else tensors
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
