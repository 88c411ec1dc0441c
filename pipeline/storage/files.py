"""URLs and lists of input files, for every store that fsspec knows."""

import os
import re
from dataclasses import dataclass
from typing import Any

import fsspec

from ..errors import UserError
from .hub import SCHEME, hub_files, saved_files
from .secrets import masked, password_of

_MAGIC = "*?["

# No request may wait for ever: seconds to connect and between two bytes of an answer, and botocore's tries of one
# request, all that the input's readers have where a server says 500. s3fs asks five times on top of that, so that a
# store that never answers is known after six minutes.
_S3_CLIENT = {"connect_timeout": 5, "read_timeout": 15, "retries": {"mode": "standard", "total_max_attempts": 5}}


@dataclass(frozen=True)
class InputFile:
    """A file as listed: what is compared on resume to see that the input did not change."""

    path: str
    size: int
    version: str  # etag where the store has one, else the time of change


def open_url(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it; `UserError` for an unknown scheme."""
    if url.startswith(SCHEME):
        return fsspec.filesystem("file"), url  # its files are local ones
    try:
        fs, path = fsspec.url_to_fs(url, **_client_options(url))
    except (ValueError, ImportError) as error:
        raise UserError(f"url: cannot use {masked(url)}: {one_line(error)}") from None
    password = password_of(url)
    if password and password in str(path):
        # Stores that take no password from the URL see it as part of the path, and paths are sent and shown.
        raise UserError(f"url: {masked(url)} holds a password; give it through fsspec's own configuration")
    return fs, str(path)


def _client_options(url: str) -> dict[str, Any]:
    """Time limits of the store's client, below what the user's own fsspec configuration says of it."""
    if not url.startswith(("s3://", "s3a://")):
        return {}
    own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    return {"config_kwargs": _S3_CLIENT | own}


def list_input(url: str, output: str | None = None) -> tuple[fsspec.AbstractFileSystem, list[InputFile]]:
    """Files of a URL, sorted by path: one file, all below a folder, or what a glob matches; no hidden names.

    What lies below ``output`` (a path) is no input, so that an output folder may lie in the input folder.
    """
    fs, path = open_url(url)
    try:
        fs.invalidate_cache()  # else a listing of earlier would be told again
        if path.startswith(SCHEME):
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


def one_line(error: Exception) -> str:
    """What a library said, on one line, without credentials."""
    said = "no such file" if isinstance(error, FileNotFoundError) else masked(" ".join(str(error).split()))
    return said or type(error).__name__
