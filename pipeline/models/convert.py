"""One-time conversion of a GGUF file into a folder of safetensors."""

import shutil
import tempfile
from pathlib import Path


def convert_gguf(gguf: Path, target: Path) -> None:
    """Dequantise ``gguf`` and write model and tokenizer to the folder ``target``, which appears at once or not at all.

    A model as loaded from GGUF cannot be saved, so its state dict goes into a fresh model of the same config.
    The weights are stored in bf16: they come from at most 8 bits each.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    load = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**load)
    loaded = AutoModelForCausalLM.from_pretrained(**load, dtype=torch.bfloat16)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    fresh.load_state_dict(loaded.state_dict())
    part = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        fresh.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
