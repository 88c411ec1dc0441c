"""List the files of an input URL, in any store that fsspec knows."""

import os
import re
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, masked_error
from pipeline.storage.store.urls import HUB, open_url

from .hub import download_dataset, saved_dataset_files

_GLOB_CHARACTERS = "*?["


@dataclass(frozen=True)
class InputFile:
    """A file as listed; a resumed run compares it to see whether the input changed."""

    path: str
    size: int
    version: str  # the etag if the store has one, else the modification time


def list_input(url: str, output: str | None = None) -> tuple[fsspec.AbstractFileSystem, list[InputFile]]:
    """The files of a URL, sorted by path: one file, all files below a folder, or the matches of a glob; none hidden.

    Files below ``output`` (a path) are left out, so that the output folder may lie in the input folder. Raises
    `UserError` if the URL cannot be read or has no file.
    """
    fs, path = open_url(url)
    is_glob = any(c in path for c in _GLOB_CHARACTERS)
    try:
        fs.invalidate_cache()
        if path.startswith(HUB):
            return fs, [_input_file(p, fs.info(p)) for p in download_dataset(path)]
        if is_glob:
            found = fs.glob(path, detail=True)
        elif fs.isdir(path):
            found = saved_dataset_files(fs, path, fs.find(path, detail=True))
        else:
            found = {path: fs.info(path)}
    except UserError:
        raise
    except Exception as error:  # stores raise their own error types
        raise UserError(f"input: cannot read {masked(url)}: {masked_error(error)}") from None
    root = re.split(r"[*?\[]", path)[0].rpartition("/")[0] if is_glob else path
    visible = {p: info for p, info in sorted(found.items()) if not _is_hidden(p, root)}
    if output is not None:
        visible = {p: info for p, info in visible.items() if not p.startswith(output.rstrip("/") + "/")}
    files = [_input_file(p, info) for p, info in visible.items() if _is_file(p, info)]
    if not files:
        raise UserError(f"input: no file at {masked(url)}")
    return fs, files


def is_changed(url: str, file: InputFile) -> bool:
    """Whether a file of the input ``url`` was changed or removed since it was listed."""
    fs, _ = open_url(url)
    fs.invalidate_cache(file.path)
    try:
        now = _input_file(file.path, fs.info(file.path))
    except FileNotFoundError:
        return True
    return now.size != file.size or (now.version != file.version and bool(now.version and file.version))


def _is_file(path: str, info: dict[str, Any]) -> bool:
    return info["type"] == "file" or (bool(info.get("islink")) and os.path.isfile(path))


def _input_file(path: str, info: dict[str, Any]) -> InputFile:
    if info.get("islink"):  # local: describe the target
        target = os.stat(path)
        return InputFile(path, target.st_size, str(target.st_mtime))
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return InputFile(path, int(info["size"] or 0), str(version).strip('"'))


def _is_hidden(path: str, root: str) -> bool:
    """Whether a name below the root starts with ``.`` or ``_``, as markers and partial files of other tools do."""
    relative = path.removeprefix(root) if path != root else ""
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def name_without_query(path: str) -> str:
    """A path in lower case, a web address without its query: its end tells the file's format."""
    return re.sub(r"^(https?://[^?]*)\?.*", r"\1", path).lower()
