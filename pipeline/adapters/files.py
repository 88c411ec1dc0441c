"""The files of one adapter: its config, and its weights in one safetensors file or in shards that an index lists."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import UserError, first_names, one_line
from pipeline.untrusted import printable_name, read_json, short_repr

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
_SHARD = re.compile(r"\w[\w.-]*\.safetensors")
_CHECKPOINT = re.compile(r"(?:checkpoint|ckpt|global_step|step|epoch|iter)[-_]?\d+|last|best|final")

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
"""The types of values that are computed with, by their names in safetensors."""


def adapter_files(folder: Path) -> list[Path]:
    """Return all files of an adapter; raises `UserError` as `weight_files` does."""
    index = [folder / _INDEX_FILE] if (folder / _INDEX_FILE).exists() else []
    return [folder / CONFIG_FILE, *index, *weight_files(folder)]


def weight_files(folder: Path) -> list[Path]:
    """Return the file of an adapter's weights, or all its shards; `UserError` says what is there instead."""
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    shards = sorted(set(shard_of_tensor(folder).values()))
    if not shards:
        raise _bad(folder, f"it has no {WEIGHTS_FILE}{_instead(folder)}")
    missing = [name for name in shards if not (folder / name).exists()]
    if missing:
        raise _bad(folder, f"{_INDEX_FILE} lists {', '.join(missing[:5])}, missing here; copy all files")
    return [folder / name for name in shards]


def shard_of_tensor(folder: Path) -> dict[str, str]:
    """Return the shard of each tensor that an adapter's index lists; empty if its weights are in one file."""
    path = folder / _INDEX_FILE
    if (folder / WEIGHTS_FILE).exists() or not path.exists():
        return {}
    try:
        index = read_json(path)
        shards = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(shards, dict):
            raise ValueError("it has no weight_map")
        for name in shards.values():
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise ValueError(f"{short_repr(name)} is no name of a shard")
    except (OSError, ValueError) as error:
        raise _bad(folder, f"cannot read {_INDEX_FILE}: {one_line(error)}") from None
    return shards


def is_checkpoint(name: str) -> bool:
    """Whether a folder's name is one that trainers give to the state of a training (``checkpoint-500``)."""
    return _CHECKPOINT.fullmatch(name) is not None


def checkpoints(folder: Path) -> list[str]:
    """Return the sub-folders with an adapter that a trainer left in a folder."""
    return [name for name in adapters_in(folder) if is_checkpoint(name)]


def adapters_in(folder: Path) -> list[str]:
    """Return the names of the sub-folders that hold an adapter, sorted; hidden ones are none."""
    return sorted(p.parent.name for p in folder.glob(f"*/{CONFIG_FILE}") if p.parent.name[0] != ".")


def has_weights(folder: Path) -> bool:
    """Whether a folder holds an adapter's weights, or shards or a pickle of them."""
    return any(folder.glob("adapter_model*"))


def _instead(folder: Path) -> str:
    """Return what the folder has in place of the weights, and what to do."""
    pickles = _names(path for ending in ("bin", "pt", "pth", "ckpt") for path in folder.glob(f"*.{ending}"))
    others = _names(folder.glob("*.safetensors"))
    if any(re.search(r"-\d+-of-\d+\.", name) for name in others):
        return f", but shards ({_some(others)}) without their index {_INDEX_FILE}; copy that too"
    if others:
        return f", but {_some(others)}; rename the file if it holds the LoRA weights that PEFT saved"
    if pickles:
        return (
            f", but {_some(pickles)}: pickle is refused, since it can run code; save it again with PEFT's"
            " save_pretrained, which writes safetensors"
        )
    return " or other weights; copy it again from where it was trained"


def _names(paths: Iterable[Path]) -> list[str]:
    return sorted(path.name for path in paths)


def _some(names: list[str]) -> str:
    return first_names([*map(printable_name, names)])


class MappedFile:
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
        dtype = DTYPES.get(entry["dtype"])
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
