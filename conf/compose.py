"""Compose a job's config with Hydra and check it with its pydantic model."""

from pathlib import Path
from typing import Any, TypeVar, get_args

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError

from .diagnose import keys_of, one_line, problems, unknown

CONF_DIR = Path(__file__).resolve().parent
PROJECT_DIR = CONF_DIR.parent
_Model = TypeVar("_Model", bound=BaseModel)

# The defaults name the demo's files, wherever the command is started.
OmegaConf.register_new_resolver("project_dir", lambda: str(PROJECT_DIR), replace=True)


def load_settings(job: str, overrides: list[str], model: type[_Model]) -> _Model:
    """Compose ``conf/<job>.yaml`` with ``overrides`` (``group=option`` or ``key=value``) and check it.

    Raises `UserError` with one line for each thing that is wrong.
    """
    wrong: list[str] = []
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        try:
            composed = compose(job, overrides=overrides)
            values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        except (HydraException, OmegaConfBaseException):
            wrong, composed = problems(overrides, lambda words: _composed(job, words), CONF_DIR)
            values = OmegaConf.to_container(composed, resolve=True)
    return _checked(values, model, wrong)


def saved_settings(values: dict[str, Any], overrides: list[str], model: type[_Model]) -> _Model:
    """A config that was composed before, as `run.json` has it, with ``key=value`` overrides."""
    try:
        merged = OmegaConf.merge(OmegaConf.create(values), OmegaConf.from_dotlist(overrides))
    except OmegaConfBaseException as error:
        raise UserError("config: " + one_line(error)) from None
    return _checked(OmegaConf.to_container(merged), model)


def as_yaml(values: dict[str, Any]) -> str:
    """A config for people; what it says can be given again as ``key=value``."""
    return str(OmegaConf.to_yaml(OmegaConf.create(values)))


def _composed(job: str, overrides: list[str]) -> DictConfig:
    return compose(job, overrides=overrides)


def _checked(values: Any, model: type[_Model], wrong: list[str] | None = None) -> _Model:
    """The model of the values; `UserError` with the lines ``wrong`` and one for each value that does not fit."""
    lines = list(wrong or [])
    try:
        checked = model.model_validate(values)
    except ValidationError as error:
        lines += [line for line in map(_Described(model), error.errors()) if line]
    if lines:
        raise UserError("\n".join(dict.fromkeys(lines)))
    return checked


class _Described:
    """One line for an error of pydantic; none for a value that is missing, which was told already."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._known = keys_of(_fields(model))

    def __call__(self, detail: Any) -> str:
        key = ".".join(str(part) for part in _place(detail["loc"]))
        if detail["type"] == "extra_forbidden":
            return unknown(key, self._known)
        if detail["type"] == "missing":
            return f"config: {key} is missing"
        if detail["input"] == "???":
            return ""
        return f"config: {key}: {detail['msg']} (got {detail['input']!r})"


def _place(loc: tuple[Any, ...]) -> list[Any]:
    """Where a value stands in the config: pydantic puts the name of a group's option behind that of the group."""
    group, *rest = loc
    options = [file.stem for file in (CONF_DIR / str(group)).glob("*.yaml")]
    return [group, *(rest[1:] if len(rest) > 1 and rest[0] in options else rest)]


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Names of a model's fields, nested as the models are; those of all models that a field may hold."""
    return {name: _nested(field.annotation) for name, field in model.model_fields.items()}


def _nested(annotation: Any) -> dict[str, Any] | None:
    held = get_args(annotation) or (annotation,)
    models = [one for one in held if isinstance(one, type) and issubclass(one, BaseModel)]
    return {name: field for one in models for name, field in _fields(one).items()} or None
