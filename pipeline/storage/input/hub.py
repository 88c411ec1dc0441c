"""Data sets of Hugging Face `datasets`: folders written by `save_to_disk`, and ids on the hub."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import fsspec
import orjson

from pipeline.errors import UserError, one_line
from pipeline.storage.store.redact import masked
from pipeline.storage.store.urls import HUB

_OPTIONS = ("config", "split", "revision")
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def saved_dataset_files(fs: fsspec.AbstractFileSystem, folder: str, found: dict[str, Any]) -> dict[str, Any]:
    """The files in a folder that hold rows: the ones that `save_to_disk` lists if it wrote the folder, else all.

    ``found``: the folder's files by path. Raises `UserError` for a folder with several splits.
    """
    root = folder.rstrip("/")
    if f"{root}/{_SPLITS}" in found:
        splits = _names(fs, f"{root}/{_SPLITS}", lambda card: card["splits"])
        shown = masked(root)
        raise UserError(f"input: {shown} holds the splits {', '.join(splits)}; give one of them: {shown}/{splits[0]}")
    if f"{root}/{_STATE}" not in found or not any(path.endswith(".arrow") for path in found):
        return found
    names = _names(fs, f"{root}/{_STATE}", lambda card: [file["filename"] for file in card["_data_files"]])
    missing = [name for name in names if f"{root}/{name}" not in found]
    if missing:
        raise UserError(
            f"input: {masked(folder)} lacks {missing[0]}, which its {_STATE} names; save the data set again"
        )
    return {f"{root}/{name}": found[f"{root}/{name}"] for name in names}


def _names(fs: fsspec.AbstractFileSystem, path: str, read: Callable[[Any], Any]) -> list[str]:
    """Names in a JSON file written by `save_to_disk`; `UserError` if it holds none."""
    try:
        names = read(orjson.loads(fs.cat_file(path)))
    except (ValueError, KeyError, TypeError):
        names = None
    if not isinstance(names, list) or not names or not all(map(_is_name, names)):
        raise UserError(f"input: {masked(path)} was not written by datasets.save_to_disk; save the data set again")
    return names


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= 255


def download_dataset(url: str) -> list[str]:
    """Local Arrow files of ``hub:NAME[?config=...&split=train&revision=...]``, downloaded unless they are cached."""
    shown, _, query = url.partition("?")  # the query is not shown: users may put a token there by mistake
    name = shown.removeprefix(HUB)
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_OPTIONS))
    split = options.get("split", "train")
    if unknown or not re.fullmatch(r"[\w.]+", split):
        raise UserError(f"input: {shown}: give hub:NAME?split=SPLIT, with config= or revision= where it needs one")
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            "input: data sets on the hub need the package datasets: pip install 'loraloom[datasets]'"
        ) from None
    try:
        loaded = load_dataset(name, options.get("config"), split=split, revision=options.get("revision"))
    except Exception as error:  # the library has its own error types for what is missing, gated or malformed
        raise UserError(f"input: cannot load {shown}: {masked(one_line(error, max_chars=None))[:300]}") from None
    return [str(file["filename"]) for file in loaded.cache_files]
