"""Compose a job's config with Hydra and check it with its pydantic model."""

from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError

CONF_DIR = Path(__file__).resolve().parent
PROJECT_DIR = CONF_DIR.parent
_Model = TypeVar("_Model", bound=BaseModel)

# The defaults name the demo's files, wherever the command is started.
OmegaConf.register_new_resolver("project_dir", lambda: str(PROJECT_DIR), replace=True)


def load_settings(job: str, overrides: list[str], model: type[_Model]) -> _Model:
    """Compose ``conf/<job>.yaml`` with ``overrides`` (``group=option`` or ``key=value``) and check it.

    Raises `UserError` with one line for each thing that is wrong.
    """
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            composed = compose(job, overrides=overrides)
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError("config: " + _one_line(error)) from None
    return _checked(values, model)


def saved_settings(values: dict[str, Any], overrides: list[str], model: type[_Model]) -> _Model:
    """A config that was composed before, as `run.json` has it, with ``key=value`` overrides."""
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist(overrides))
    except OmegaConfBaseException as error:
        raise UserError("config: " + _one_line(error)) from None
    return _checked(OmegaConf.to_container(merged), model)


def _checked(values: Any, model: type[_Model]) -> _Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_describe(detail) for detail in error.errors()]
        raise UserError("\n".join(lines)) from None


def _describe(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"config: unknown key {key}; conf/ lists the keys"
    return f"config: {key}: {detail['msg']} (got {detail['input']!r})"


def _one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])
