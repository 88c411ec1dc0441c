"""A folder of PEFT adapters, read and checked against the base model."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.file_sample import hash_sample
from pipeline.untrusted import printable_name, short_repr

from .config import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig, is_adapter_name, read_adapter_config
from .weights import ModuleWeights, read_weights

BaseShapes = dict[str, tuple[int, int]]
"""Module name -> (in features, out features) of the base model's layers that LoRA can adapt.

For an embedding: (vocabulary, dimension).
"""


@dataclass(frozen=True)
class Adapter:
    """One adapter: its config, and its weights by module of the base model."""

    name: str
    config: AdapterConfig
    modules: dict[str, ModuleWeights]


class AdapterBank:
    """Adapters by name; reading a bank needs no base model, `check_base` compares it with one."""

    def __init__(self, adapters: dict[str, Adapter], folder: Path) -> None:
        self.adapters = adapters
        self.folder = folder

    @staticmethod
    def load(folder: str | Path, only: Iterable[str] | None = None) -> "AdapterBank":
        """Read all PEFT adapters of a folder, or those in ``only``; `UserError` for the first that cannot be used."""
        root = Path(folder)
        found = adapter_names(root)
        wanted = list(only) if only is not None else found
        missing = sorted(set(wanted) - set(found))
        if missing:
            raise UserError(f"bank: {root} has no adapter {', '.join(map(printable_name, missing))} (bank.adapters)")
        for name in wanted:
            if not is_adapter_name(name):
                raise UserError(f"bank: {short_repr(name)} cannot be the name of an adapter; rename it ({root})")
        # One after another: mapping tensors holds the interpreter lock, and eight threads took four times as long.
        adapters = {}
        for name in wanted:
            config = read_adapter_config(root / name)
            adapters[name] = Adapter(name, config, read_weights(root / name, config))
        return AdapterBank(adapters, root)

    @cached_property
    def names(self) -> list[str]:
        """Return the names of the adapters, sorted."""
        return sorted(self.adapters)

    @cached_property
    def modules(self) -> list[str]:
        """Return the names of all modules that an adapter changes, sorted."""
        return sorted({module for adapter in self.adapters.values() for module in adapter.modules})

    @cached_property
    def fingerprint(self) -> str:
        """Hash names, scales, and the sample of each file of weights (`file_sample`): up to 4 MiB, all of it."""
        digest = hashlib.sha256()
        for name in self.names:
            scales = {module: weights.scale for module, weights in self.adapters[name].modules.items()}
            digest.update(repr((name, sorted(scales.items()))).encode())
            hash_sample(digest, self.folder / name / WEIGHTS_FILE)
        return digest.hexdigest()[:16]

    def check_base(self, shapes: BaseShapes, model: str) -> None:
        """Compare every adapter with the base model's layers; raise `UserError` for the first that does not fit."""
        for name in self.names:
            for module, weights in self.adapters[name].modules.items():
                shape = (weights.A.shape[1], weights.B.shape[0])
                if ".experts." in f".{module}.":
                    problem = f"changes {module}, and experts of a mixture of experts are not supported"
                elif module not in shapes:
                    problem = f"changes {module}, which the model {model} does not have"
                elif shape != shapes[module]:
                    problem = f"was trained for {module} of {shape[0]} to {shape[1]}, the model {model} has " + (
                        f"{shapes[module][0]} to {shapes[module][1]}"
                    )
                else:
                    continue
                raise UserError(f"bank: adapter {name!r} {problem}: another base model? ({self.folder / name})")

    def check_values(self) -> None:
        """Raise `UserError` for the first adapter with a NaN or infinite weight."""
        for name in self.names:
            for module, weights in self.adapters[name].modules.items():
                if not all(torch.isfinite(tensor).all() for tensor in weights.tensors.values()):
                    raise UserError(
                        f"bank: adapter {name!r}: NaN or infinite values in {module} ({self.folder / name})"
                    )


def adapter_names(bank: Path) -> list[str]:
    """Return the sub-folders of a bank that hold an adapter, sorted; `UserError` if there are none."""
    if not bank.is_dir():
        raise UserError(f"bank: no folder {bank} (bank.path)")
    found = sorted(p.name for p in bank.iterdir() if p.name[0] != "." and p.is_dir() and (p / CONFIG_FILE).exists())
    if not found:
        raise UserError(f"bank: no adapter in {bank}: it has no sub-folder with an adapter_config.json (bank.path)")
    return found
