"""Read and check the tensors of one adapter, by module."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from pipeline.errors import UserError, one_line
from pipeline.untrusted import check_tensor_file, short_repr

from .config import WEIGHTS_FILE, AdapterConfig

# PEFT's names. Embeddings have no `.weight`; `base_layer` is PEFT's copy of an adapted embedding's own weight.
_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A"
    r"|lora_embedding_B|lora_magnitude_vector|base_layer\.weight|base_layer\.bias)"
)
_PARTS = {
    **{"lora_A.weight": "A", "lora_embedding_A": "A"},
    **{"lora_B.weight": "B", "lora_embedding_B": "B"},
    **{"base_layer.weight": "base.weight", "base_layer.bias": "base.bias"},
    **{"lora_B.bias": "bias", "lora_magnitude_vector": "magnitude"},
}
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_MAX_KEY = 500  # characters
_MAX_DIMENSIONS, _MAX_SIZE = 8, 2**31  # of a tensor: one without values may claim any size


@dataclass(frozen=True)
class ModuleWeights:
    """The change of one module by one adapter: ``y += scale * (B A x + bias)``, or its DoRA form.

    ``A`` [r x in], ``B`` [out x r], ``bias`` [out] (`lora_bias`), ``magnitude`` [out] (DoRA, arXiv 2402.09353).
    ``embedding``: the module looks rows up, so ``in`` counts the vocabulary. ``base``: copies of the layer's own
    ``weight`` and ``bias`` that PEFT saved with an embedding or head; they must equal the base model's.
    """

    A: torch.Tensor
    B: torch.Tensor
    scale: float
    bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    embedding: bool = False
    base: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """Return the rank r."""
        return self.A.shape[0]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the adapter that are set, by name; ``base`` is the model's and left out."""
        named = {"A": self.A, "B": self.B, "bias": self.bias, "magnitude": self.magnitude}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def read_weights(folder: Path, config: AdapterConfig) -> dict[str, ModuleWeights]:
    """Read the tensors of an adapter's folder by module name; `UserError` for pickles, bad names, shapes or dtypes.

    Tensors are mapped into memory, not read: their pages are loaded at the first use.
    """
    path = folder / WEIGHTS_FILE
    if not path.exists():
        pickled = [p.name for p in folder.glob("adapter_model.*")]
        what = f"only {', '.join(pickled)}: pickle is refused, since it can run code" if pickled else "no weights"
        raise UserError(f"bank: adapter {folder.name!r} has {what}; save it as adapter_model.safetensors ({folder})")
    modules: dict[str, dict[str, torch.Tensor]] = {}
    embeddings = set()
    unexpected = {part for part, on in (("lora_magnitude_vector", config.dora), ("lora_B.bias", config.bias)) if not on}
    try:
        check_tensor_file(path)
        with safe_open(str(path), framework="pt") as tensors:
            mapped = _MappedFile(path)
            for key in sorted(tensors.keys()):
                match = _KEY.fullmatch(key)
                if match is None or match["part"] in unexpected or not key.isprintable() or len(key) > _MAX_KEY:
                    raise _bad(folder, f"unknown tensor {short_repr(key)}")
                parts, part = modules.setdefault(match["module"], {}), _PARTS[match["part"]]
                if part in parts:
                    raise _bad(folder, f"tensor {short_repr(key)} repeats one of another name")
                shape = mapped.entries[key]["shape"]
                if len(shape) > _MAX_DIMENSIONS or max(shape, default=0) > _MAX_SIZE:
                    raise _bad(folder, f"tensor {short_repr(key)} has the shape {short_repr(shape)}")
                tensor = mapped.tensor(key)
                parts[part] = tensors.get_tensor(key) if tensor is None else tensor
                if match["part"].startswith("lora_embedding"):
                    embeddings.add(match["module"])
        config.check_patterns(len(modules))
    except (OSError, ValueError, SafetensorError) as error:
        raise _bad(folder, f"{path.name} is not a safetensors file of LoRA weights: {one_line(error)}") from None
    adapted = {module: parts for module, parts in modules.items() if not set(parts) <= {"base.weight", "base.bias"}}
    if not adapted:
        raise _bad(folder, "no LoRA tensors")
    for module in set(modules) - set(adapted):
        raise _bad(folder, f"it carries a weight of {module}, which it does not adapt")
    return {module: _checked(module, parts, module in embeddings, config, folder) for module, parts in adapted.items()}


def _checked(
    module: str, parts: dict[str, torch.Tensor], embedding: bool, config: AdapterConfig, folder: Path
) -> ModuleWeights:
    for side in "AB":
        if side not in parts:
            raise _bad(folder, f"{module} lacks lora_{side}")
    for tensor in parts.values():
        if tensor.dtype not in _DTYPES.values():
            raise _bad(folder, f"{module} holds {tensor.dtype} values; save it as fp32, fp16 or bf16")
    a, b = parts["A"], parts["B"]
    rank = config.rank(module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise _bad(folder, f"{module} has shapes A {list(a.shape)}, B {list(b.shape)}, the config says rank {rank}")
    needed = {"magnitude": config.dora, "bias": config.bias and not embedding}
    for part, on in needed.items():
        if on and part not in parts:
            raise _bad(folder, f"{module} has no {part} vector, which the config announces")
        if part in parts and parts[part].shape != b.shape[:1]:
            raise _bad(folder, f"{module} has {part} {list(parts[part].shape)} beside B {list(b.shape)}")
    base = {key.removeprefix("base."): tensor for key, tensor in parts.items() if key.startswith("base.")}
    return ModuleWeights(a, b, config.scale(module), parts.get("bias"), parts.get("magnitude"), embedding, base)


class _MappedFile:
    """A safetensors file in memory, five times faster to read than with the library's own tensors.

    The library must have checked the header (`safetensors.safe_open`). The mapping is private: pages are loaded at the
    first use, and nothing is written back.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header: dict[str, Any] = json.loads(f.read(length))
        self.entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
        self._data = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        self._start = 8 + length

    def tensor(self, key: str) -> torch.Tensor | None:
        """Return a tensor, or None if its dtype is none of LoRA's; `ValueError` if its bytes do not fill its shape."""
        entry = self.entries[key]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            return None
        start, end = (self._start + offset for offset in entry["data_offsets"])
        data = self._data[start:end]
        try:
            # Files need not align their tensors; a tensor that is not aligned is copied.
            return (data.clone() if start % dtype.itemsize else data).view(dtype).view(entry["shape"])
        except RuntimeError:
            raise ValueError(f"{end - start} bytes do not fill a tensor of shape {entry['shape']}") from None


def _bad(folder: Path, what: str) -> UserError:
    return UserError(f"bank: adapter {folder.name!r}: {what} ({folder})")
