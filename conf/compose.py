"""Compose a job's config with Hydra and check it with its pydantic model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError

from .defaults import default_of
from .diagnose import keys_of, one_line, problems, unknown
from .words import as_meant

CONF_DIR = Path(__file__).resolve().parent
PROJECT_DIR = CONF_DIR.parent
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")  # pydantic's names, of models and of dataclasses
_Model = TypeVar("_Model", bound=BaseModel)

# The defaults name the demo's files, wherever the command is started.
OmegaConf.register_new_resolver("project_dir", lambda: str(PROJECT_DIR), replace=True)
OmegaConf.register_new_resolver("default", default_of, replace=True)


def load_settings(job: str, overrides: Sequence[str], model: type[_Model]) -> _Model:
    """Compose ``conf/<job>.yaml`` with ``overrides`` (``group=option`` or ``key=value``) and check it.

    Raises `UserError` with one line for each thing that is wrong.
    """
    wrong: list[str] = []
    overrides = [as_meant(word) for word in overrides]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        try:
            composed = compose(job, overrides=list(overrides))
            values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        except (HydraException, OmegaConfBaseException):
            wrong, composed = problems(overrides, lambda words: _composed(job, words), CONF_DIR)
            values = OmegaConf.to_container(composed, resolve=True)
    return _checked(values, model, wrong)


def saved_settings(values: dict[str, Any], overrides: Sequence[str], model: type[_Model]) -> _Model:
    """Check a config of an earlier run, as `run.json` has it, with ``key=value`` overrides."""
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist(list(overrides)))
    except OmegaConfBaseException as error:
        raise UserError("config: " + one_line(error)) from None
    return _checked(OmegaConf.to_container(merged), model)


def as_yaml(values: dict[str, Any]) -> str:
    """Format a config as YAML, whose values can be given again as ``key=value``."""
    return str(OmegaConf.to_yaml(OmegaConf.create(values)))


def _composed(job: str, overrides: Sequence[str]) -> DictConfig:
    return compose(job, overrides=list(overrides))


def _checked(values: Any, model: type[_Model], wrong: list[str] | None = None) -> _Model:
    """Check the values; `UserError` with the lines ``wrong`` and one line for each wrong value."""
    lines = list(wrong or [])
    try:
        checked = model.model_validate(values)
    except ValidationError as error:
        lines += _lines(values, error)
    if lines:
        raise UserError("\n".join(dict.fromkeys(lines)))
    return checked


def _lines(values: Any, error: ValidationError) -> list[str]:
    """Return one line for each error of pydantic; none for a missing value, which is reported already."""
    details = {".".join(map(str, detail["loc"])): detail for detail in error.errors()}
    unknown_keys = {key for key, detail in details.items() if detail["type"] in _UNKNOWN_KEY}
    known = [key for key in keys_of(values) if key not in unknown_keys]
    return [line for key, detail in details.items() if (line := _line(key, detail, known))]


def _line(key: str, detail: Any, known: list[str]) -> str:
    if detail["type"] in _UNKNOWN_KEY:
        return unknown(key, known)
    if detail["type"] == "missing":
        return f"config: {key} is missing"
    if detail["type"] == "engine":
        return f"config: engine.backend: {detail['msg']}"
    if detail["type"] == "setting":
        return f"config: {key} {detail['msg']}"
    is_number = detail["type"] == "string_type" and isinstance(detail["input"], (int, float))
    hint = f"; write a text of digits as '{key}=\"...\"'" if is_number else ""
    return "" if detail["input"] == "???" else f"config: {key}: {detail['msg']} (got {detail['input']!r}){hint}"
