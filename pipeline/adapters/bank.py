"""A folder of PEFT adapters, read and checked against the base model."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from pipeline.errors import UserError, first_names
from pipeline.file_sample import hash_sample
from pipeline.untrusted import printable_name, short_repr

from .config import AdapterConfig, is_adapter_name, read_adapter_config
from .copies import copy_problem, vocabulary_problem
from .files import CONFIG_FILE, adapters_in, checkpoints, has_weights, is_checkpoint, weight_files
from .weights import ModuleWeights, read_weights

BaseShapes = dict[str, tuple[int, int]]
"""Module name -> (in features, out features) of the base model's layers that LoRA can adapt.

For an embedding: (vocabulary, dimension).
"""


@dataclass(frozen=True)
class Adapter:
    """One adapter: its config, and its weights by module of the base model.

    ``copies``: weights of the base model that the adapter's file carries too; they must equal the base model's.
    """

    name: str
    config: AdapterConfig
    modules: dict[str, ModuleWeights]
    copies: dict[str, torch.Tensor]


class AdapterBank:
    """Adapters by name; reading a bank needs no base model, `check_base` compares it with one."""

    def __init__(self, adapters: dict[str, Adapter], folder: Path) -> None:
        self.adapters = adapters
        self.folder = folder

    @staticmethod
    def load(folder: str | Path, only: Iterable[str] | None = None) -> "AdapterBank":
        """Read all PEFT adapters of a folder, or those in ``only``; `UserError` for the first that cannot be used."""
        root = Path(folder)
        wanted = list(only) if only is not None else adapter_names(root)
        missing = sorted(set(wanted) - set(_folders(root)))
        if missing:
            raise UserError(f"bank: {root} has no adapter {', '.join(map(printable_name, missing))} (bank.adapters)")
        for name in wanted:
            if not is_adapter_name(name):
                raise UserError(f"bank: {short_repr(name)} cannot be the name of an adapter; rename it ({root})")
        # One after another: mapping tensors holds the interpreter lock, and eight threads took four times as long.
        adapters = {}
        for name in wanted:
            config = read_adapter_config(root / name)
            adapters[name] = Adapter(name, config, *read_weights(root / name, config))
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
            for path in weight_files(self.folder / name):
                hash_sample(digest, path)
        return digest.hexdigest()[:16]

    def check_base(self, shapes: BaseShapes, model: str) -> None:
        """Compare every adapter with the base model's layers; raise `UserError` for the first that does not fit."""
        for name in self.names:
            for module, weights in self.adapters[name].modules.items():
                if problem := _shape_problem(module, weights, shapes, model):
                    raise UserError(f"bank: adapter {name!r} {problem} ({self.folder / name})")

    def check_copies(self, weight_of: Callable[[str], torch.Tensor | None], model: str) -> None:
        """Compare the weights of the base model that adapters carry; `UserError` for the first that is another.

        ``weight_of``: gives the base model's weight of a name, or None; on torch's meta device only its shape counts.
        """
        for weight in sorted({weight for adapter in self.adapters.values() for weight in adapter.copies}):
            own = weight_of(weight)
            for name in self.names:
                copy = self.adapters[name].copies.get(weight)
                problem = None if copy is None else copy_problem(weight, copy, own, model)
                if problem:
                    raise UserError(f"bank: adapter {name!r} {problem} ({self.folder / name})")

    def check_values(self) -> None:
        """Raise `UserError` for the first adapter with a NaN or infinite weight."""
        for name in self.names:
            for module, weights in self.adapters[name].modules.items():
                if not all(torch.isfinite(tensor).all() for tensor in weights.tensors.values()):
                    raise UserError(
                        f"bank: adapter {name!r}: NaN or infinite values in {module} ({self.folder / name})"
                    )


def _shape_problem(module: str, weights: ModuleWeights, shapes: BaseShapes, model: str) -> str | None:
    if ".experts." in f".{module}.":
        return f"changes {module}, and experts of a mixture of experts are not supported; retrain it without them"
    if module not in shapes:
        return f"changes {module}, which the model {model} does not have: another base model?"
    inputs, outputs = weights.A.shape[1], weights.B.shape[0]
    if (inputs, outputs) == shapes[module]:
        return None
    if weights.embedding and outputs == shapes[module][1]:
        return vocabulary_problem(module, inputs, shapes[module][0], model)
    if module.rsplit(".", 1)[-1] == "lm_head" and inputs == shapes[module][0]:
        return vocabulary_problem(module, outputs, shapes[module][1], model)
    return (
        f"was trained for {module} of {inputs} to {outputs}, the model {model} has"
        f" {shapes[module][0]} to {shapes[module][1]}: another base model?"
    )


def adapter_names(bank: Path) -> list[str]:
    """Return the sub-folders of a bank that hold an adapter, sorted; `UserError` if it is no bank.

    The output of a training, and weights without their config, count as an adapter, so that they are not passed over:
    reading them says what to do.
    """
    found = _folders(bank)
    if (bank / CONFIG_FILE).exists():
        raise UserError(
            f"bank: {bank} is an adapter itself, and a bank is a folder of adapters; move it into a sub-folder with the"
            " adapter's name, or name the sub-folders to use in bank.adapters (bank.path)"
        )
    if found and all(map(is_checkpoint, found)):
        raise UserError(
            f"bank: {bank} is the output of a training, and {', '.join(found[:3])} are states of one adapter; copy the"
            " one to use into a bank, under the adapter's name, or name it in bank.adapters (bank.path)"
        )
    if not found:
        deeper = sorted(path.name for path in bank.iterdir() if path.is_dir() and adapters_in(path))
        packed = sorted(path.name for path in bank.iterdir() if path.name.endswith((".zip", ".tar", ".tgz", ".gz")))
        hint = f"; {printable_name(deeper[0])} in it has some: give that folder" if deeper else ""
        hint += f"; unpack {first_names([*map(printable_name, packed)])}" if packed else ""
        raise UserError(
            f"bank: no adapter in {bank}: it has no sub-folder with an adapter_config.json{hint} (bank.path)"
        )
    return found


def _folders(bank: Path) -> list[str]:
    """Return the names of a bank's adapters, and of folders that are in their place, sorted."""
    if bank.is_file():
        raise UserError(f"bank: {bank} is a file, and a bank is a folder of adapters; unpack it (bank.path)")
    if not bank.is_dir():
        raise UserError(f"bank: no folder {bank} (bank.path)")
    others = [p.name for p in bank.iterdir() if p.name[0] != "." and p.is_dir() and (checkpoints(p) or has_weights(p))]
    return sorted({*adapters_in(bank), *others})
