"""Rules of ``engine=auto``: the engine that a config's own keys ask for, and the one that a machine and a job allow."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any

from pipeline.errors import UserError

from .backend import BackendSpec
from .registry import BACKENDS, is_installed
from .settings import BackendSettings

AUTO = "auto"
FALLBACK = "native"
"""The engine that runs everywhere."""
NAMED = "the config names it"
"""The reason of an engine that was not chosen here."""


@dataclass(frozen=True)
class Choice:
    """An engine and the reason for it."""

    name: str
    reason: str

    def __str__(self) -> str:
        """The line that a job logs."""
        return f"engine     {self.name}: {self.reason}"


def engine_of_keys(keys: Iterable[str]) -> Choice | None:
    """Return the engine that alone has one of these keys of ``engine``, such as ``lora.mode``; None if there is none.

    Raises `UserError` for keys of two engines.
    """
    owners: dict[str, str] = {}
    for key in keys:
        owner = _owner(key.partition(".")[0])
        if owner:
            owners.setdefault(owner, key)
    if len(owners) > 1:
        settings = " and ".join(f"engine.{key} is a setting of engine={name}" for name, key in owners.items())
        raise UserError(f"config: {settings}; give the settings of one engine")
    return next((Choice(name, f"engine.{key} is a setting of it") for name, key in owners.items()), None)


def choose(gpus: Callable[[], float], refusal: Callable[[str], str]) -> Choice:
    """Return the first engine that is installed, finds a GPU and takes the job; else the native one, with the reasons.

    ``gpus`` counts the GPUs that the engine may use. ``refusal`` returns why an engine does not take the job; empty if
    it does. Both may take long, and are called only if nothing before them decides.
    """
    problems = []
    for name, spec in BACKENDS.items():
        if spec.auto_problem is None:
            continue
        problem = _problem(name, spec, gpus, refusal)
        if not problem:
            return Choice(name, "it is installed, there is a GPU, and it takes the job")
        problems.append(problem)
    return Choice(FALLBACK, "; ".join(problems))


def _problem(name: str, spec: BackendSpec[Any], gpus: Callable[[], float], refusal: Callable[[str], str]) -> str:
    if not is_installed(spec):
        return f"the package {spec.package} is not installed"
    return refusal(name) if gpus() else "there is no GPU for it"


def _owner(key: str) -> str:
    """Return the engine that alone has a key; a misspelt one counts, so that the error names that engine's keys."""
    shared = _fields(BackendSettings)
    own = {field: name for name, spec in BACKENDS.items() for field in _fields(spec.settings) - shared}
    nearest = get_close_matches(key, [*own, *shared], n=1, cutoff=0.8)
    return own.get(nearest[0], "") if nearest else ""


def _fields(settings: type[BackendSettings]) -> set[str]:
    return {field.name for field in fields(settings)}
