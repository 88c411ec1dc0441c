"""Download folders of a store to this machine, each once, even if several processes ask for it at the same time."""

import hashlib
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from pipeline.errors import UserError

from .redact import masked, masked_path, user_errors
from .urls import open_url


def local_copy(reference: str, cache: Path, key: str) -> str:
    """The local path of a folder or file given by URL, downloaded first if needed; a local path is returned unchanged.

    A copy lies below ``cache`` under a hash of its URL and of its files' sizes and versions, so that changed files are
    downloaded again. It appears whole or not at all. ``key``: the config key that messages of `UserError` name.
    """
    if "://" not in reference or reference.startswith("file://"):
        return reference.removeprefix("file://")
    fs, root = open_url(reference)
    if "://" not in root:  # a web address may end with a signature
        root = root.rstrip("/")
    with user_errors(f"{key}: cannot read {masked(reference)}"):
        found = fs.find(root, detail=True)
        files = {path: info for path, info in found.items() if info.get("type", "file") == "file"}
        # The listings of web servers lack sizes.
        files = {path: fs.info(path) if info.get("size") is None else info for path, info in files.items()}
    if not files:
        raise UserError(f"{key}: nothing at {masked(reference)}")
    target = cache / f"{_name(root)}-{_digest(reference, files)}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                with user_errors(f"{key}: cannot copy {masked(reference)}"):
                    _download(fs, root, sorted(files), target)
    return str(target / _name(root) if list(files) == [root] else target)


def _name(path: str) -> str:
    """The last part of a path; of a web address without the query, which may be a signature."""
    return PurePosixPath(path.partition("?")[0] if "://" in path else path).name


def _digest(reference: str, files: dict[str, Any]) -> str:
    digest = hashlib.sha256(masked(reference).encode())
    for path, info in sorted(files.items()):
        version = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("created") or ""
        digest.update(f"\0{masked_path(path)}\0{info['size']}\0{version}".encode())
    return digest.hexdigest()[:16]


def _download(fs: Any, root: str, paths: list[str], target: Path) -> None:
    """Download into a temporary folder beside ``target``, then rename it."""
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        copies = [part / _relative_path(path, root) for path in paths]
        for copy in copies:
            copy.parent.mkdir(parents=True, exist_ok=True)
        fs.get(paths, [str(copy) for copy in copies])
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _relative_path(path: str, root: str) -> PurePosixPath:
    """The path of a file in the copy. `UserError` if it leads out of the copy: a store's keys may hold any text."""
    relative = PurePosixPath(path.removeprefix(root).lstrip("/") or _name(root))
    if ".." in relative.parts:
        raise UserError(f"url: the name {masked(path)} leads out of its folder")
    return relative
