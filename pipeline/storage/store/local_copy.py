"""Download folders of a store to this machine, each once, even if several processes ask for it at the same time."""

import hashlib
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock

from pipeline.errors import UserError

from .header_copy import answers_ranges, copy_headers, large_weights
from .redact import masked, masked_path, user_errors
from .urls import open_url

_HEADERS = "-headers"  # ends the name of a copy without the values of weights


def local_copy(reference: str, cache: Path, key: str, values: bool = True) -> str:
    """The local path of a folder or file given by URL, downloaded first if needed; a local path is returned unchanged.

    A copy lies below ``cache`` under a hash of its URL and of its files' sizes and versions, so that changed files are
    downloaded again. It appears whole or not at all. ``key``: the config key that messages of `UserError` name.
    ``values``: without them, the weights in a folder are as `header_copy` says, unless a copy with values is there.
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
    with user_errors(f"{key}: cannot copy {masked(reference)}"):
        sizes = {path: int(info["size"]) for path, info in files.items()}
        large = [] if values or list(files) == [root] or target.exists() else large_weights(sizes)
        headers = target.with_name(target.name + _HEADERS)
        if large and (headers.exists() or answers_ranges(fs, large[0])):
            target = headers
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{target}.lock"):
                if not target.exists():
                    _download(fs, root, sizes, large if target == headers else [], target)
    return str(target / _name(root) if list(files) == [root] else target)


def has_values(copy: str) -> bool:
    """Whether a path of `local_copy` holds all values of its weights."""
    return not copy.endswith(_HEADERS)


def _name(path: str) -> str:
    """The last part of a path; of a web address without the query, which may be a signature."""
    return PurePosixPath(path.partition("?")[0] if "://" in path else path).name


def _digest(reference: str, files: dict[str, Any]) -> str:
    digest = hashlib.sha256(masked(reference).encode())
    for path, info in sorted(files.items()):
        version = info.get("ETag") or info.get("etag") or info.get("LastModified") or info.get("created") or ""
        digest.update(f"\0{masked_path(path)}\0{info['size']}\0{version}".encode())
    return digest.hexdigest()[:16]


def _download(fs: Any, root: str, sizes: dict[str, int], without_values: list[str], target: Path) -> None:
    """Download into a temporary folder beside ``target``, then rename it."""
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        copies = {path: part / _relative_path(path, root) for path in sorted(sizes)}
        for copy in copies.values():
            copy.parent.mkdir(parents=True, exist_ok=True)
        copy_headers(fs, sizes, {path: copies.pop(path) for path in without_values})
        fs.get(list(copies), [str(copy) for copy in copies.values()])
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _relative_path(path: str, root: str) -> PurePosixPath:
    """The path of a file in the copy. `UserError` if it leads out of the copy: a store's keys may hold any text."""
    relative = PurePosixPath(path.removeprefix(root).lstrip("/") or _name(root))
    if ".." in relative.parts:
        raise UserError(f"url: the name {masked(path)} leads out of its folder")
    return relative
