"""Adapter folders of mixtures for vLLM: written when a shard needs them, removed when no shard does."""

import hashlib
import json
import os
import shutil
import tempfile
import threading
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

_SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "loraloom-mixtures-"
_LOCK = ".lock"


@dataclass(frozen=True)
class MixtureFile:
    """A mixture as an adapter of vLLM. ``number``: above 0, unique among the mixtures held at a time."""

    name: str
    number: int
    path: str


@dataclass
class _Held:
    file: MixtureFile
    holders: int = 0


class MixtureFiles:
    """The mixtures of one bank that are in use, each in its own PEFT folder. Thread-safe.

    ``folder``: parent of the folders; None for shared memory, or the temporary folder if there is none. Folders that
    killed processes left there are removed first: a live process holds the lock of its own folder. ``zero_adapter``:
    an adapter that changes nothing. Raises `UserError` if ``folder`` is not writable.
    """

    def __init__(self, bank: AdapterBank, folder: str | None = None) -> None:
        self._bank = bank
        parent = _parent(folder)
        try:
            _sweep(parent)
            self._own = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
            self.folder = Path(self._own.name)
            self._alive = FileLock(self.folder / _LOCK)
            self._alive.acquire()
        except OSError as error:
            raise UserError(f"config: engine.folder: cannot write to {parent}: {error.strerror or error}") from None
        self._lock = threading.Lock()
        self._held: dict[Mixture, _Held] = {}
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
                    held = self._held.get(mixture) or self._add(mixture)
                    held.holders += 1
                    taken.append(mixture)
                files = {mixture: self._held[mixture].file for mixture in taken}
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

    def _add(self, mixture: Mixture) -> _Held:
        # Equal names must mean equal weights: vLLM's prefix cache identifies adapters by name.
        digest = hashlib.sha256(f"{self._bank.fingerprint}\0{mixture.key}".encode()).hexdigest()[:32]
        self._held[mixture] = held = _Held(self._write(digest, fold(self._bank, mixture)))
        return held

    def _release(self, mixture: Mixture) -> None:
        held = self._held[mixture]
        held.holders -= 1
        if not held.holders:
            del self._held[mixture]
            shutil.rmtree(held.file.path, ignore_errors=True)
            self.removed += 1

    def _write(self, name: str, modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> MixtureFile:
        path = self.folder / name
        write_adapter(path, modules)
        self.written += 1
        return MixtureFile(name, next(self._numbers), str(path))


def write_adapter(path: Path, modules: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
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
    path.mkdir()
    try:
        save_file(tensors, path / WEIGHTS_FILE)
        (path / CONFIG_FILE).write_text(json.dumps(config))
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise


def _parent(folder: str | None) -> Path:
    if folder is not None:
        return Path(folder).absolute()
    return _SHARED_MEMORY if os.access(_SHARED_MEMORY, os.W_OK) else Path(tempfile.gettempdir())


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
