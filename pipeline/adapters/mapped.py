"""Tensors of a safetensors file as views of one mapping: a bank of a thousand adapters has a hundred thousand."""

import json
from pathlib import Path
from typing import Any

import torch

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


class MappedFile:
    """A file whose header the library has checked (`safetensors.safe_open`); its own tensors cost five times as much.

    The mapping is private: pages come from the disk with the first use, and nothing is written back.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            header: dict[str, Any] = json.loads(f.read(length))
        self.entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
        self._data = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
        self._begin = 8 + length

    def tensor(self, key: str) -> torch.Tensor | None:
        """A tensor; None for a type that adapters do not have. `ValueError` where its bytes are not of its shape."""
        entry = self.entries[key]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            return None
        begin, end = (self._begin + offset for offset in entry["data_offsets"])
        data = self._data[begin:end]
        try:
            # Files need not align their tensors; what would start within a number is copied.
            return (data.clone() if begin % dtype.itemsize else data).view(dtype).view(entry["shape"])
        except RuntimeError:
            raise ValueError(f"{end - begin} bytes are no tensor of shape {entry['shape']}") from None
