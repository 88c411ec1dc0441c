"""Banks of random adapters in PEFT's format, of the demo bank's shape."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.adapters import CONFIG_FILE, WEIGHTS_FILE
from pipeline.engine import base_shapes

RANK, MODULES = 8, ("q_proj", "v_proj")


def make_bank(folder: Path, model: torch.nn.Module, count: int) -> list[str]:
    """``count`` adapters with small random weights; returns their names."""
    shapes = {name: s for name, s in base_shapes(model).items() if name.rsplit(".", 1)[-1] in MODULES}
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 16, "lora_dropout": 0.0}
    generator = torch.Generator().manual_seed(0)
    names = [f"adapter-{number:04d}" for number in range(count)]
    for name in names:
        tensors = {}
        for module, (inputs, outputs) in shapes.items():
            for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                weights = torch.randn(shape, generator=generator) * 0.02
                tensors[f"base_model.model.{module}.lora_{side}.weight"] = weights.to(torch.bfloat16)
        (folder / name).mkdir(parents=True)
        (folder / name / CONFIG_FILE).write_text(json.dumps(config | {"target_modules": list(MODULES)}))
        save_file(tensors, folder / name / WEIGHTS_FILE)
    return names
