"""The tensors of one adapter, by module, checked."""

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..errors import UserError
from .config import WEIGHTS_FILE, AdapterConfig

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class ModuleWeights:
    """``A`` [r x in], ``B`` [out x r] and the scale of one module: the update is ``scale * B A x``."""

    A: torch.Tensor
    B: torch.Tensor
    scale: float


def read_weights(folder: Path, config: AdapterConfig) -> dict[str, ModuleWeights]:
    """Tensors of an adapter's folder by module name; `UserError` for pickles, bad names, shapes or values."""
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = [p.name for p in folder.glob("adapter_model.*")]
        what = f"only {', '.join(pickled)}: pickle is refused, since it can run code" if pickled else "no weights"
        raise UserError(f"bank: adapter {folder.name!r} has {what}; save it as adapter_model.safetensors ({folder})")
    sides: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(str(path), framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - a safetensors handle, not a dict
                match = _KEY.fullmatch(key)
                if match is None:
                    raise _bad(folder, f"unknown tensor {key!r}")
                sides.setdefault(match["module"], {})[match["side"]] = tensors.get_tensor(key)
    except SafetensorError as error:
        raise _bad(folder, f"{path.name} is not a safetensors file: {error}") from None
    if not sides:
        raise _bad(folder, "no LoRA tensors")
    return {module: _checked(module, pair, config, folder) for module, pair in sides.items()}


def _checked(module: str, pair: dict[str, torch.Tensor], config: AdapterConfig, folder: Path) -> ModuleWeights:
    if set(pair) != {"A", "B"}:
        raise _bad(folder, f"{module} lacks lora_{'B' if 'A' in pair else 'A'}")
    a, b = pair["A"], pair["B"]
    rank = config.rank(module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise _bad(folder, f"{module} has shapes A {list(a.shape)}, B {list(b.shape)}, the config says rank {rank}")
    for tensor in (a, b):
        if not tensor.is_floating_point():
            raise _bad(folder, f"{module} holds {tensor.dtype} values")
    return ModuleWeights(a, b, config.scale(module))


def _bad(folder: Path, what: str) -> UserError:
    return UserError(f"bank: adapter {folder.name!r}: {what} ({folder})")
