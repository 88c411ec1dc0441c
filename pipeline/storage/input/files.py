"""List the files of an input URL: in any store that fsspec knows, or of a data set of Hugging Face `datasets`."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import fsspec
import orjson
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import UserError, one_line
from pipeline.storage.store.redact import masked, user_errors
from pipeline.storage.store.urls import HUB, open_url

_STATE, _SPLITS = "state.json", "dataset_dict.json"
# Names of files that lie beside data and are none: documentation, code, pictures, checksums, what `datasets` writes.
_NO_DATA = re.compile(
    r"(readme|licen[cs]e|notice|changelog|citation|authors|requirements|checksums|(md5|sha\d+)sums?)(\.(md|rst|txt))?"
    r"|(dataset_infos?|dataset_dict|state)\.json|.*_\$folder\$"
    r"|.*\.(md|rst|html?|pdf|py|ipynb|sh|ya?ml|toml|cfg|ini|cff|png|jpe?g|gif|svg|webp|log|crc|md5|sha\d+)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class InputFile:
    """A file as listed; a resumed run compares it to see whether the input changed."""

    path: str
    size: int
    version: str  # the etag if the store has one, else the modification time


class Listing(NamedTuple):
    """The files of an input, sorted by path, and the names of those that are left out because they are no data."""

    fs: fsspec.AbstractFileSystem
    files: list[InputFile]
    skipped: list[str]


def list_input(url: str, output: str | None = None) -> Listing:
    """List the files of a URL: one file, all files below a folder, or what a glob matches; none hidden.

    A file of that very name goes before what it matches as a glob. Files below ``output`` (a path) are left out, so
    that the output folder may lie in the input folder. Raises `UserError` if the URL cannot be read or has no file.
    """
    fs, path = open_url(url)
    with user_errors(f"input: cannot read {masked(url)}"):
        fs.invalidate_cache()
        if path.startswith(HUB):
            return Listing(fs, [_input_file(p, fs.info(p)) for p in _download_dataset(path)], [])
        is_glob = any(c in path for c in "*?[") and not fs.exists(path)
        found = _matches(fs, path) if is_glob else _below(fs, path) if fs.isdir(path) else {path: fs.info(path)}
    root = re.split(r"[*?\[]", path)[0].rpartition("/")[0] if is_glob else path
    files = {
        p: info
        for p, info in sorted(found.items())
        if not _is_hidden(p, root) and (info["type"] == "file" or (info.get("islink") and os.path.isfile(p)))
    }
    # Links and dots lead to one folder by many paths.
    real = os.path.realpath if isinstance(fs, LocalFileSystem) else str
    at, below = real(root), None if output is None else real(output).rstrip("/") + "/"
    own = {p: i for p, i in files.items() if below is None or not (at + p.removeprefix(root)).startswith(below)}
    if files and not own:
        raise UserError(f"input: {masked(url)} lies in the output folder; give another --output")
    skipped = {p: None for p in own if p != path and _NO_DATA.fullmatch(p.rpartition("/")[2])}
    names = [p.removeprefix(root).lstrip("/") for p in skipped]
    data = [_input_file(_printable(p), info) for p, info in own.items() if p not in skipped]
    if not data:
        raise UserError(f"input: no file at {masked(url)}" + (f", only {', '.join(names[:3])}" if names else ""))
    return Listing(fs, data, names)


def is_changed(url: str, file: InputFile) -> bool:
    """Whether a file of the input ``url`` was changed or removed since it was listed."""
    fs, _ = open_url(url)
    fs.invalidate_cache(file.path)
    try:
        now = _input_file(file.path, fs.info(file.path))
    except FileNotFoundError:
        return True
    return now.size != file.size or (now.version != file.version and bool(now.version and file.version))


def _printable(path: str) -> str:
    """The path of a file; `UserError` for bytes that are no text, which neither plan nor output could hold."""
    if path.encode("utf-8", "replace").decode() != path:
        shown = path.encode("utf-8", "backslashreplace").decode()
        raise UserError(f"input: the name of {masked(shown)} is not UTF-8; rename it")
    return path


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


def _matches(fs: fsspec.AbstractFileSystem, pattern: str) -> dict[str, Any]:
    """The files that a glob matches, and those below the folders that it matches, as in ``dt=2026-11-*``."""
    matches = fs.glob(pattern, detail=True)
    folders = [p for p, info in matches.items() if _is_folder(p, info) and "**" not in pattern]
    return dict(matches) | {p: info for folder in folders for p, info in _below(fs, folder).items()}


def _below(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, Any]:
    """All files below a folder; of what `save_to_disk` wrote, those with rows. `UserError` for several splits."""
    root, found = folder.rstrip("/"), _all_below(fs, folder)
    if f"{root}/{_SPLITS}" in found:
        splits = _names(fs, f"{root}/{_SPLITS}", lambda card: card["splits"])
        shown = masked(root)
        raise UserError(f"input: {shown} holds the splits {', '.join(splits)}; give one of them: {shown}/{splits[0]}")
    states = {path.rpartition("/")[0] for path in found if path.endswith(f"/{_STATE}")}
    saved = states & {path.rpartition("/")[0] for path in found if path.endswith(".arrow")}
    rows = {f"{at}/{name}" for at in saved for name in _saved_names(fs, at, found)}
    return {path: info for path, info in found.items() if path in rows or path.rpartition("/")[0] not in saved}


def _all_below(fs: fsspec.AbstractFileSystem, folder: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """All files below a folder, and below the folders that links in it point to. ``above``: folders on the way here."""
    found = dict(fs.find(folder, detail=True))
    for path in [path for path, info in found.items() if info.get("islink") and os.path.isdir(path)]:
        way = (*above, os.path.realpath(os.path.dirname(path)))
        target = os.path.realpath(path)
        if not any(os.path.commonpath([target, passed]) == target for passed in way):  # else it leads round and round
            found |= _all_below(fs, path, way)
    return found


def _is_folder(path: str, info: dict[str, Any]) -> bool:
    return info["type"] == "directory" or (bool(info.get("islink")) and os.path.isdir(path))


def _saved_names(fs: fsspec.AbstractFileSystem, folder: str, found: dict[str, Any]) -> list[str]:
    """The files with the rows of a data set that `save_to_disk` wrote; others are caches of `datasets`."""
    names = _names(fs, f"{folder}/{_STATE}", lambda card: [file["filename"] for file in card["_data_files"]])
    missing = [name for name in names if f"{folder}/{name}" not in found]
    if missing:
        raise UserError(
            f"input: {masked(folder)} lacks {missing[0]}, which its {_STATE} names; save the data set again"
        )
    return names


def _names(fs: fsspec.AbstractFileSystem, path: str, read: Callable[[Any], Any]) -> list[str]:
    """Names in a JSON file written by `save_to_disk`; `UserError` if it holds none."""
    try:
        names = read(orjson.loads(fs.cat_file(path)))
    except (ValueError, KeyError, TypeError):
        names = None
    is_list = isinstance(names, list) and len(names) > 0
    if not is_list or not all(isinstance(n, str) and n.isprintable() and 0 < len(n) <= 255 for n in names):
        raise UserError(f"input: {masked(path)} was not written by datasets.save_to_disk; save the data set again")
    return list(names)


def _download_dataset(url: str) -> list[str]:
    """Local Arrow files of ``hub:NAME[?config=...&split=train&revision=...]``, downloaded unless they are cached."""
    shown, _, query = url.partition("?")  # the query is not shown: users may put a token there by mistake
    name = shown.removeprefix(HUB)
    options = dict(parse_qsl(query, keep_blank_values=True))
    split = options.get("split", "train")
    if options.keys() - {"config", "split", "revision"} or not re.fullmatch(r"[\w.]+", split):
        raise UserError(f"input: {shown}: give hub:NAME?split=SPLIT, with config= or revision= where it needs one")
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError("input: data sets on the hub need a package: pip install 'loraloom[datasets]'") from None
    try:
        loaded = load_dataset(name, options.get("config"), split=split, revision=options.get("revision"))
    except Exception as error:  # the library has its own error types for what is missing, gated or malformed
        raise UserError(f"input: cannot load {shown}: {masked(one_line(error, max_chars=None))[:300]}") from None
    return [str(file["filename"]) for file in loaded.cache_files]
