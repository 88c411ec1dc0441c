"""What is wrong with a command's overrides: all of it at once, each with what was probably meant."""

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
    """One line for each override that cannot be taken, and the config of the others.

    Groups are looked at first, since they decide which keys there are. ``folder``: that of the groups.
    """
    groups: list[str] = []
    keys: list[str] = []
    for word in overrides:
        (groups if (folder / _key(word)).is_dir() else keys).append(word)
    found: list[str] = []
    taken: list[str] = []
    for word in [*groups, *keys]:
        try:
            _resolved(compose([*taken, word]))
            taken.append(word)
        except (HydraException, OmegaConfBaseException) as error:
            found.append(_explain(word, error, compose(taken), folder))
    config = compose(taken)
    found += [f"config: {key} has no value; give {key}=..." for key in sorted(OmegaConf.missing_keys(config))]
    return found, config


def unknown(key: str, known: Iterable[str]) -> str:
    """The line about a key that is not there."""
    meant = nearest(key, known)
    return f"config: unknown key {key}; " + (f"did you mean {meant}?" if meant else "conf/ lists the keys")


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The key that was probably meant: one like it in its group, of the same last part in another, or like it there."""
    keys = list(known)
    group, _, last = word.rpartition(".")
    lasts = {key: key.rpartition(".")[2] for key in keys}
    here = [key for key in keys if key.rpartition(".")[0] == group]
    same = [key for key in keys if lasts[key] == last]
    for candidates in (here if group else [], same if len(same) == 1 else [], here, keys):
        by_name = {lasts[key] if group or "." in key else key: key for key in reversed(candidates)}
        like = difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.6)
        if like:
            return by_name[like[0]]
    like = [] if here else difflib.get_close_matches(word, keys, n=1, cutoff=0.8)
    return like[0] if like else None


def keys_of(values: Any, prefix: str = "") -> list[str]:
    """Dotted names of a nested config: its groups and its values."""
    if not isinstance(values, dict):
        return []
    names = [(f"{prefix}{key}", value) for key, value in values.items()]
    return [key for name, value in names for key in (name, *keys_of(value, f"{name}."))]


def _explain(word: str, error: Exception, config: DictConfig, folder: Path) -> str:
    key = _key(word)
    if (folder / key).is_dir():
        options = sorted(file.stem for file in (folder / key).glob("*.yaml"))
        value = word.partition("=")[2]
        meant = nearest(value, options)
        return f"config: {key} has no option {value!r}; it has {', '.join(options)}" + (
            f"; did you mean {key}={meant}?" if meant else ""
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
    """The first two lines of what Hydra says, as one, without the address of its manual."""
    said = str(error).partition("\nSee https://hydra.cc")[0]
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return " ".join(lines[:2])
