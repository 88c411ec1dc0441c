"""Data sets of Hugging Face `datasets`: folders that `save_to_disk` wrote, and hub ids."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import fsspec
import orjson

from pipeline.errors import UserError
from pipeline.storage.store.redact import masked
from pipeline.storage.store.urls import HUB

_KEYS = ("config", "split", "revision")
_STATE, _SPLITS = "state.json", "dataset_dict.json"


def saved_files(fs: fsspec.AbstractFileSystem, folder: str, found: dict[str, Any]) -> dict[str, Any]:
    """Of the files ``found`` in a folder, those that hold rows: all, or the ones that `save_to_disk` names.

    `UserError` for a folder of several splits: which of them is meant is for the user to say.
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
        raise UserError(f"input: {masked(folder)} lacks {missing[0]}, which its {_STATE} names; save the data set anew")
    return {f"{root}/{name}": found[f"{root}/{name}"] for name in names}


def _names(fs: fsspec.AbstractFileSystem, path: str, read: Callable[[Any], Any]) -> list[str]:
    """Names in a file that `save_to_disk` wrote; `UserError` where it holds none."""
    try:
        names = read(orjson.loads(fs.cat_file(path)))
    except (ValueError, KeyError, TypeError):
        names = None
    if not isinstance(names, list) or not names or not all(map(_is_name, names)):
        raise UserError(f"input: {masked(path)} is not as datasets.save_to_disk writes it; save the data set anew")
    return names


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= 255


def hub_files(url: str) -> list[str]:
    """Local Arrow files of ``hub:NAME[?config=...&split=train&revision=...]``; what is missing is downloaded first."""
    shown, _, query = url.partition("?")  # what follows may be a token, which is given by HF_TOKEN
    name = shown.removeprefix(HUB)
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - set(_KEYS))
    split = options.get("split", "train")
    if unknown or not re.fullmatch(r"[\w.]+", split):
        raise UserError(f"input: {shown}: give hub:NAME?split=SPLIT, with config= or revision= where it needs one")
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError("input: data sets of the hub need datasets: pip install 'loraloom[datasets]'") from None
    try:
        loaded = load_dataset(name, options.get("config"), split=split, revision=options.get("revision"))
    except Exception as error:  # the library raises kinds of its own for what is missing, gated or malformed
        raise UserError(f"input: cannot load {shown}: {masked(' '.join(str(error).split()))[:300]}") from None
    return [str(file["filename"]) for file in loaded.cache_files]
