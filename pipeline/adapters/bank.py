"""A folder of PEFT adapters, read whole and checked against the base model."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.untrusted import shown

from .config import CONFIG_FILE, AdapterConfig, is_adapter_name, read_adapter_config
from .weights import ModuleWeights, read_weights

BaseShapes = dict[str, tuple[int, int]]
"""Module name -> (in features, out features) of the base model's layers that LoRA can sit on.

Of an embedding: (vocabulary, dimension).
"""


@dataclass(frozen=True)
class Adapter:
    """One adapter: its config and, by module of the base model, its weights."""

    name: str
    config: AdapterConfig
    modules: dict[str, ModuleWeights]


class AdapterBank:
    """Adapters by name. Reading a bank needs no base model; `check_base` compares the two."""

    def __init__(self, adapters: dict[str, Adapter], folder: Path) -> None:
        self.adapters = adapters
        self.folder = folder

    @staticmethod
    def load(folder: str | Path, only: Iterable[str] | None = None) -> "AdapterBank":
        """Read every adapter of a folder (one PEFT folder each), or those named in ``only``.

        Raises `UserError` for the first adapter that is missing, damaged or not exactly computable.
        """
        root = Path(folder)
        if not root.is_dir():
            raise UserError(f"bank: no folder {root} (bank.path)")
        found = sorted(p.name for p in root.iterdir() if p.name[0] != "." and p.is_dir() and (p / CONFIG_FILE).exists())
        wanted = list(only) if only is not None else found
        missing = sorted(set(wanted) - set(found))
        if missing:
            raise UserError(f"bank: {root} has no adapter {', '.join(map(_named, missing))} (bank.adapters)")
        for name in wanted:
            if not is_adapter_name(name):
                raise UserError(f"bank: {shown(name)} cannot be the name of an adapter; rename its folder ({root})")
        if not wanted:
            raise UserError(f"bank: no adapter in {root}: it has no sub-folder with an adapter_config.json (bank.path)")
        # One after the other: mapping tensors is work of the interpreter, and eight threads took four times as long.
        adapters = [_read(root / name) for name in wanted]
        return AdapterBank({adapter.name: adapter for adapter in adapters}, root)

    @cached_property
    def names(self) -> list[str]:
        """Names of the adapters, sorted."""
        return sorted(self.adapters)

    @cached_property
    def modules(self) -> list[str]:
        """Names of all modules that some adapter changes, sorted."""
        return sorted({module for adapter in self.adapters.values() for module in adapter.modules})

    @cached_property
    def fingerprint(self) -> str:
        """Hash of names, configs and weights: two banks with the same one give the same output."""
        digest = hashlib.sha256()
        for name in self.names:
            adapter = self.adapters[name]
            digest.update(repr((name, sorted(adapter.modules))).encode())
            for module in sorted(adapter.modules):
                weights = adapter.modules[module]
                digest.update(repr((weights.scale, weights.A.dtype, tuple(weights.A.shape))).encode())
                for part, tensor in weights.tensors.items():
                    if part not in "AB":
                        digest.update(part.encode())
                    digest.update(_bytes(tensor))
        return digest.hexdigest()[:16]

    def check_base(self, shapes: BaseShapes, model: str) -> None:
        """Compare every adapter with the base model's layers; `UserError` names the first that does not fit."""
        for name in self.names:
            for module, weights in self.adapters[name].modules.items():
                has = (weights.A.shape[1], weights.B.shape[0])
                if ".experts." in f".{module}.":
                    problem = f"changes {module}, and experts of a mixture of experts see other tokens than the model"
                elif module not in shapes:
                    problem = f"changes {module}, which the model {model} does not have"
                elif has != shapes[module]:
                    problem = f"was trained for {module} of {has[0]} to {has[1]}, the model {model} has " + (
                        f"{shapes[module][0]} to {shapes[module][1]}"
                    )
                else:
                    continue
                raise UserError(f"bank: adapter {name!r} {problem}: another base model? ({self.folder / name})")

    def check_values(self) -> None:
        """`UserError` for the first adapter with a NaN or infinite weight."""
        for name in self.names:
            for module, weights in self.adapters[name].modules.items():
                if not all(torch.isfinite(tensor).all() for tensor in weights.tensors.values()):
                    raise UserError(
                        f"bank: adapter {name!r}: NaN or infinite values in {module} ({self.folder / name})"
                    )


def _read(folder: Path) -> Adapter:
    config = read_adapter_config(folder)
    return Adapter(folder.name, config, read_weights(folder, config))


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _named(name: str) -> str:
    return name if is_adapter_name(name) and len(name) <= 100 else shown(name)
