"""The tensors of one adapter, by module, checked."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from .config import AdapterConfig

# PEFT's names. Those of embeddings have no `.weight`; `base_layer` is its copy of an adapted embedding's own weight.
_KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A"
    r"|lora_embedding_B|lora_magnitude_vector|base_layer\.weight)"
)
_PARTS = {
    **{"lora_A.weight": "A", "lora_embedding_A": "A"},
    **{"lora_B.weight": "B", "lora_embedding_B": "B"},
    **{"lora_B.bias": "bias", "lora_magnitude_vector": "magnitude", "base_layer.weight": "base"},
}


@dataclass(frozen=True)
class ModuleWeights:
    """What one adapter does to one module: ``y += scale * (B A x + bias)``, or that under DoRA.

    ``A`` [r x in], ``B`` [out x r], ``bias`` [out] (`lora_bias`), ``magnitude`` [out] (DoRA, arXiv 2402.09353).
    ``embedding``: the module looks rows up, so ``in`` counts the vocabulary. ``base``: a copy of the embedding that
    PEFT saved with the adapter; it must equal that of the base model.
    """

    A: torch.Tensor
    B: torch.Tensor
    scale: float
    bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    embedding: bool = False
    base: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """Rank r."""
        return self.A.shape[0]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that there are, by name; without ``base``, which is not the adapter's."""
        named = {"A": self.A, "B": self.B, "bias": self.bias, "magnitude": self.magnitude}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


def read_weights(folder: Path, config: AdapterConfig) -> dict[str, ModuleWeights]:
    """Tensors of an adapter's folder by module name; `UserError` for pickles, bad names, shapes or values.

    Tensors are mapped into memory, not read: their pages come from the disk with the first use.
    """
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        pickled = [p.name for p in folder.glob("adapter_model.*")]
        what = f"only {', '.join(pickled)}: pickle is refused, since it can run code" if pickled else "no weights"
        raise UserError(f"bank: adapter {folder.name!r} has {what}; save it as adapter_model.safetensors ({folder})")
    modules: dict[str, dict[str, torch.Tensor]] = {}
    embeddings = set()
    try:
        with safe_open(str(path), framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - a safetensors handle, not a dict
                match = _KEY.fullmatch(key)
                if match is None:
                    raise _bad(folder, f"unknown tensor {key!r}")
                modules.setdefault(match["module"], {})[_PARTS[match["part"]]] = tensors.get_tensor(key)
                if match["part"].startswith("lora_embedding"):
                    embeddings.add(match["module"])
    except SafetensorError as error:
        raise _bad(folder, f"{path.name} is not a safetensors file: {error}") from None
    adapted = {module: parts for module, parts in modules.items() if set(parts) != {"base"}}
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
        if not tensor.is_floating_point():
            raise _bad(folder, f"{module} holds {tensor.dtype} values")
    a, b = parts["A"], parts["B"]
    rank = config.rank(module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise _bad(folder, f"{module} has shapes A {list(a.shape)}, B {list(b.shape)}, the config says rank {rank}")
    for part, key, on in (("bias", "lora_bias", config.bias), ("magnitude", "use_dora", config.dora)):
        if (part in parts) != (on and not (part == "bias" and embedding)):
            has = "a" if part in parts else "no"
            raise _bad(folder, f"{module} has {has} {part} vector, the config says {key}={str(on).lower()}")
        if part in parts and parts[part].shape != b.shape[:1]:
            raise _bad(folder, f"{module} has {part} {list(parts[part].shape)} beside B {list(b.shape)}")
    return ModuleWeights(
        a, b, config.scale(module), parts.get("bias"), parts.get("magnitude"), embedding, parts.get("base")
    )


def _bad(folder: Path, what: str) -> UserError:
    return UserError(f"bank: adapter {folder.name!r}: {what} ({folder})")
