"""Folders of a store as folders of this machine: downloaded once, whoever asks for them at the same time."""

import hashlib
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from pipeline.errors import UserError

from .redact import masked, masked_path, one_line
from .urls import open_url


def local_copy(reference: str, cache: Path, key: str) -> str:
    """The path of what a URL names, a folder or a file, on this machine; anything but a URL is returned as it is.

    A copy lies below ``cache`` under the hash of its URL and of the sizes and versions of its files: what has changed
    in the store is another copy. It appears whole or not at all. ``key``: of the config, for `UserError`.
    """
    if "://" not in reference or reference.startswith("file://"):
        return reference.removeprefix("file://")
    fs, root = open_url(reference)
    if "://" not in root:  # a web address may end with a signature
        root = root.rstrip("/")
    try:
        files = _files(fs, root)
    except Exception as error:  # stores raise kinds of their own
        raise UserError(f"{key}: cannot read {masked(reference)}: {one_line(error)}") from None
    if not files:
        raise UserError(f"{key}: nothing at {masked(reference)}")
    target = cache / f"{_name(root)}-{_digest(reference, files)}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                _download(fs, root, sorted(files), target, f"{key}: cannot copy {masked(reference)}")
    return str(target / _name(root) if list(files) == [root] else target)


def _files(fs: Any, root: str) -> dict[str, Any]:
    """What there is to know of each file; web servers' listings say neither kinds nor sizes."""
    found = {path: info for path, info in fs.find(root, detail=True).items() if info.get("type", "file") == "file"}
    return {path: fs.info(path) if info.get("size") is None else info for path, info in found.items()}


def _name(path: str) -> str:
    """The last part of a path; of a web address without the query, which may be a signature."""
    return PurePosixPath(path.partition("?")[0] if "://" in path else path).name


def _digest(reference: str, files: dict[str, Any]) -> str:
    digest = hashlib.sha256(masked(reference).encode())
    for path, info in sorted(files.items()):
        version = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("created") or ""
        digest.update(f"\0{masked_path(path)}\0{info['size']}\0{version}".encode())
    return digest.hexdigest()[:16]


def _download(fs: Any, root: str, paths: list[str], target: Path, what: str) -> None:
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        own = [part / _below(path, root) for path in paths]
        for file in own:
            file.parent.mkdir(parents=True, exist_ok=True)
        fs.get(paths, [str(file) for file in own])
        part.rename(target)
    except UserError:
        raise
    except Exception as error:  # stores raise kinds of their own
        raise UserError(f"{what}: {one_line(error)}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _below(path: str, root: str) -> PurePosixPath:
    """The place of a file in the copy; keys of a store may hold any text."""
    relative = PurePosixPath(path.removeprefix(root).lstrip("/") or _name(root))
    if ".." in relative.parts:
        raise UserError(f"url: the name {masked(path)} leads out of its folder")
    return relative
