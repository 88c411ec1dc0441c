"""Explain everything that is wrong with the overrides of a command, with suggestions for unknown keys."""

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

_KEY = re.compile(r"[+~]*([^=@\s]+)")
_Compose = Callable[[list[str]], DictConfig]


def problems(overrides: Sequence[str], compose: _Compose, folder: Path) -> tuple[list[str], DictConfig]:
    """Return one line for each override that is wrong, and the config of the others.

    Groups are looked at first, since they decide which keys there are. ``folder``: that of the groups.
    """
    groups: list[str] = []
    keys: list[str] = []
    for word in overrides:
        (groups if (folder / _key(word)).is_dir() else keys).append(word)
    errors: list[str] = []
    valid: list[str] = []
    for word in [*groups, *keys]:
        try:
            _resolved(compose([*valid, word]))
            valid.append(word)
        except (HydraException, OmegaConfBaseException) as error:
            errors.append(_explain(word, error, compose(valid), folder))
    config = compose(valid)
    errors += [f"config: {key} has no value; give {key}=..." for key in sorted(OmegaConf.missing_keys(config))]
    return errors, config


def unknown(key: str, known: Iterable[str]) -> str:
    """Format the error for an unknown key."""
    suggestion = nearest(key, known)
    return f"config: unknown key {key}; " + (f"did you mean {suggestion}?" if suggestion else "conf/ lists the keys")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Suggest a known key: a similar one in the same group, one with the same last part, or a similar one elsewhere."""
    keys = list(known)
    group, _, last = word.rpartition(".")
    lasts = {key: key.rpartition(".")[2] for key in keys}
    siblings = [key for key in keys if key.rpartition(".")[0] == group]
    same = [key for key in keys if lasts[key] == last]
    for candidates in (siblings if group else [], same if len(same) == 1 else [], siblings, keys):
        by_name = {lasts[key] if group or "." in key else key: key for key in reversed(candidates)}
        similar = difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.6)
        if similar:
            return by_name[similar[0]]
    similar = [] if siblings else difflib.get_close_matches(word, keys, n=1, cutoff=0.8)
    return similar[0] if similar else None


def keys_of(values: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of a nested config, of groups and of values."""
    if not isinstance(values, dict):
        return []
    names = [(f"{prefix}{key}", value) for key, value in values.items()]
    return [key for name, value in names for key in (name, *keys_of(value, f"{name}."))]


def _explain(word: str, error: Exception, config: DictConfig, folder: Path) -> str:
    key = _key(word)
    if (folder / key).is_dir():
        options = sorted(file.stem for file in (folder / key).glob("*.yaml"))
        value = word.partition("=")[2]
        suggestion = nearest(value, options)
        if "/" in value and "custom" in options:
            suggestion = f"custom {key}.path={value}"
        return f"config: {key} has no option {value!r}; it has {', '.join(options)}" + (
            f"; did you mean {key}={suggestion}?" if suggestion else ""
        )
    known = keys_of(OmegaConf.to_container(config))
    if "=" in word and not word.startswith(("+", "~")) and key not in known:
        return unknown(key, [*known, *(group.name for group in folder.iterdir() if group.is_dir())])
    return f"config: cannot take {word!r}: {one_line(error)}"


def _resolved(config: DictConfig) -> None:
    OmegaConf.to_container(config, resolve=True)


def _key(word: str) -> str:
    match = _KEY.match(word)
    return match[1] if match else word


def one_line(error: Exception) -> str:
    """Return the first two lines of Hydra's message as one, without the URL of its manual."""
    message = str(error).partition("\nSee https://hydra.cc")[0]
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:2])
