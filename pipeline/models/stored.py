"""The weights in a model folder's safetensors, read one at a time without loading the model."""

from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

_PLAIN = (torch.float32, torch.bfloat16, torch.float16)


class StoredWeights:
    """The weights of a model by their names in transformers, as far as its files hold them under these names.

    ``folder``: of the model; one that is not there, such as a hub id, holds no values. ``skeleton``: the model on
    torch's meta device (`load_skeleton`).
    """

    def __init__(self, folder: str, skeleton: nn.Module) -> None:
        self._folder = Path(folder) if folder else None
        self._expected: dict[str, torch.Tensor] = skeleton.state_dict(keep_vars=True)

    def get(self, name: str) -> torch.Tensor | None:
        """Return a weight; on the meta device if its values are unknown, and None if the model has none of the name."""
        expected = self._expected.get(name)
        if expected is None:
            return None
        # Tied weights are stored once.
        for alias in [name, *(other for other, tensor in self._expected.items() if tensor is expected)]:
            for key in self._keys(alias):
                with safe_open(str(self._files[key]), framework="pt") as tensors:
                    found: torch.Tensor = tensors.get_tensor(key)
                if found.shape == expected.shape and found.dtype in _PLAIN:
                    return found
        return expected

    def _keys(self, name: str) -> list[str]:
        """Return the key of a weight in the files, if there is one; some files lack the prefix of the model's body."""
        return [name] if name in self._files else [key for key in self._files if name.endswith(f".{key}")][:1]

    @cached_property
    def _files(self) -> dict[str, Path]:
        """The file of each key."""
        files: dict[str, Path] = {}
        for path in sorted(self._folder.glob("*.safetensors")) if self._folder else []:
            with safe_open(str(path), framework="pt") as tensors:
                files |= dict.fromkeys(tensors.keys(), path)
        return files
