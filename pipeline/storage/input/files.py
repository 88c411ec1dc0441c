"""URLs and lists of input files, for every store that fsspec knows."""

import os
import re
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked, one_line
from pipeline.storage.store.urls import HUB, open_url

from .hub import hub_files, saved_files

_MAGIC = "*?["


@dataclass(frozen=True)
class InputFile:
    """A file as listed: what is compared on resume to see that the input did not change."""

    path: str
    size: int
    version: str  # etag where the store has one, else the time of change


def list_input(url: str, output: str | None = None) -> tuple[fsspec.AbstractFileSystem, list[InputFile]]:
    """Files of a URL, sorted by path: one file, all below a folder, or what a glob matches; no hidden names.

    What lies below ``output`` (a path) is no input, so that an output folder may lie in the input folder.
    """
    fs, path = open_url(url)
    try:
        fs.invalidate_cache()  # else a listing of earlier would be told again
        if path.startswith(HUB):
            return fs, [_listed(p, fs.info(p)) for p in hub_files(path)]
        if any(c in path for c in _MAGIC):
            found = fs.glob(path, detail=True)
        elif fs.isdir(path):
            found = saved_files(fs, path, fs.find(path, detail=True))
        else:
            found = {path: fs.info(path)}
    except UserError:
        raise
    except Exception as error:  # stores raise kinds of their own
        raise UserError(f"input: cannot read {masked(url)}: {one_line(error)}") from None
    root = re.split(r"[*?\[]", path)[0].rpartition("/")[0] if any(c in path for c in _MAGIC) else path
    visible = {p: info for p, info in sorted(found.items()) if not _hidden(p, root)}
    if output is not None:
        visible = {p: info for p, info in visible.items() if not p.startswith(output.rstrip("/") + "/")}
    files = [_listed(p, info) for p, info in visible.items() if _is_file(p, info)]
    if not files:
        raise UserError(f"input: no file at {masked(url)}")
    return fs, files


def is_changed(url: str, file: InputFile) -> bool:
    """Whether a file of the input ``url`` is another one by now, or gone."""
    fs, _ = open_url(url)
    fs.invalidate_cache(file.path)
    try:
        now = _listed(file.path, fs.info(file.path))
    except FileNotFoundError:
        return True
    return now.size != file.size or (now.version != file.version and bool(now.version and file.version))


def _is_file(path: str, info: dict[str, Any]) -> bool:
    return info["type"] == "file" or (bool(info.get("islink")) and os.path.isfile(path))


def _listed(path: str, info: dict[str, Any]) -> InputFile:
    if info.get("islink"):  # local: what counts is the file it leads to
        target = os.stat(path)
        return InputFile(path, target.st_size, str(target.st_mtime))
    version = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("LastModified") or ""
    return InputFile(path, int(info["size"] or 0), str(version).strip('"'))


def _hidden(path: str, root: str) -> bool:
    """Names that start with ``.`` or ``_`` below the root: markers and half-written files of other tools."""
    below = path.removeprefix(root) if path != root else ""
    return any(part.startswith((".", "_")) for part in below.split("/"))


def named(path: str) -> str:
    """A path as its name tells the format: a web address without its query."""
    return re.sub(r"^(https?://[^?]*)\?.*", r"\1", path).lower()
