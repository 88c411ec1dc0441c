"""Adapter folders of mixtures for vLLM: written when a shard needs them, removed when no shard does."""

import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from pipeline.adapters import CONFIG_FILE, WEIGHTS_FILE, AdapterBank
from pipeline.errors import UserError
from pipeline.records import Mixture

from .fold import fold, probes, zero_adapter

_SHARED_MEMORY = "/dev/shm"
_PREFIX = "loraloom-mixtures-"
_LOCK = ".lock"


@dataclass(frozen=True)
class MixtureFile:
    """A mixture as an adapter of vLLM. ``number``: above 0, unique among the mixtures held at a time."""

    name: str
    number: int
    path: str


class MixtureFiles:
    """The mixtures of one bank that are in use, each in its own PEFT folder. Thread-safe.

    ``folder``: parent of the folders; None for shared memory, or the temporary folder if there is none. Folders that
    killed processes left there are removed first: a live process holds the lock of its own folder. ``zero_adapter``:
    an adapter that changes nothing. Raises `UserError` if ``folder`` is not writable.
    """

    def __init__(self, bank: AdapterBank, folder: str | None = None) -> None:
        self._bank = bank
        default = _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else tempfile.gettempdir()
        parent = Path(default if folder is None else folder).absolute()
        try:
            _sweep(parent)
            self._own = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
            self.folder = Path(self._own.name)
            self._alive = FileLock(self.folder / _LOCK)
            self._alive.acquire()
        except OSError as error:
            raise UserError(f"config: engine.folder: cannot write to {parent}: {error.strerror or error}") from None
        self._lock = threading.Lock()
        self._files: dict[Mixture, MixtureFile] = {}
        self._holders: Counter[Mixture] = Counter()
        self._numbers = count(1)
        self.written = self.removed = 0
        self.zero_adapter = self._write("zero", zero_adapter(bank)) if bank.adapters else None

    @contextmanager
    def holding(self, mixtures: Collection[Mixture]) -> Iterator[dict[Mixture, MixtureFile]]:
        """Yield the files of some mixtures, without the base model; they are kept until the last holder leaves.

        A mixture that two shards use at the same time is written once. Raises `OSError` if the disk is full.
        """
        wanted = {mixture for mixture in mixtures if mixture.adapters}
        taken: list[Mixture] = []
        try:
            with self._lock:
                for mixture in sorted(wanted, key=lambda mixture: mixture.key):
                    if mixture not in self._files:
                        # Equal names must mean equal weights: vLLM's prefix cache identifies adapters by name.
                        name = hashlib.sha256(f"{self._bank.fingerprint}\0{mixture.key}".encode()).hexdigest()[:32]
                        self._files[mixture] = self._write(name, fold(self._bank, mixture))
                    self._holders[mixture] += 1
                    taken.append(mixture)
                files = {mixture: self._files[mixture] for mixture in taken}
            yield files
        finally:
            with self._lock:
                for mixture in taken:
                    self._release(mixture)

    @contextmanager
    def probing(self) -> Iterator[dict[str, MixtureFile]]:
        """Yield the adapters of `fold.probes`, by the last part of the names of the modules that each changes."""
        files = {name: self._write(f"probe-{name}", modules) for name, modules in probes(self._bank).items()}
        try:
            yield files
        finally:
            for file in files.values():
                shutil.rmtree(file.path, ignore_errors=True)

    def close(self) -> None:
        """Remove all files."""
        self._alive.release()
        self._own.cleanup()

    def _release(self, mixture: Mixture) -> None:
        self._holders[mixture] -= 1
        if not self._holders[mixture]:
            del self._holders[mixture]
            shutil.rmtree(self._files.pop(mixture).path, ignore_errors=True)
            self.removed += 1

    def _write(self, name: str, modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> MixtureFile:
        """Write A and B of each module as a PEFT folder; the scale of each module is 1."""
        tensors = {}
        for module, (a, b) in modules.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = a.contiguous()
            tensors[f"base_model.model.{module}.lora_B.weight"] = b.contiguous()
        ranks = {module: a.shape[0] for module, (a, _) in modules.items()}
        rank = max(ranks.values())
        others = {module: own for module, own in ranks.items() if own != rank}
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": rank,
            "rank_pattern": others,
            "alpha_pattern": others,
            "target_modules": sorted({module.rsplit(".", 1)[-1] for module in modules}),
            "bias": "none",
        }
        path = self.folder / name
        path.mkdir()
        try:
            save_file(tensors, path / WEIGHTS_FILE)
            (path / CONFIG_FILE).write_text(json.dumps(config))
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)
            raise
        self.written += 1
        return MixtureFile(name, next(self._numbers), str(path))


def _sweep(parent: Path) -> None:
    """Remove the folders of killed processes: nobody holds their locks."""
    for left in parent.glob(f"{_PREFIX}*"):
        if not (left / _LOCK).exists():
            continue  # its process is just starting
        try:
            with FileLock(left / _LOCK, timeout=0):
                shutil.rmtree(left, ignore_errors=True)
        except (Timeout, OSError):
            continue
