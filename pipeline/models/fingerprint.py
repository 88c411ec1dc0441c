"""Tell one base model from another without reading all of it."""

import hashlib
from pathlib import Path
from typing import Any

_SAMPLE = 2**20


def model_fingerprint(folder: str, config: Any) -> str:
    """Hash of a model folder: small files whole, of weight files the size, the first and the last MiB.

    For a hub id: the commit that was loaded.
    """
    root = Path(folder)
    if not root.is_dir():
        return f"{folder}@{getattr(config, '_commit_hash', None)}"
    digest = hashlib.sha256()
    for path in sorted(p for p in root.iterdir() if p.is_file() and p.suffix in (".json", ".jinja", ".safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as f:
            digest.update(f.read(_SAMPLE))
            f.seek(max(0, size - _SAMPLE))
            digest.update(f.read(_SAMPLE))
    return digest.hexdigest()[:16]
