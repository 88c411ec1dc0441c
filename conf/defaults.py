"""Resolve ``${default:CLASS.FIELD}`` in the YAML files: a default of a class of the library, written only there."""

from typing import Any

from pipeline.conversations import PromptSettings
from pipeline.engine.registry import BACKENDS
from pipeline.engine.request import Sampling
from pipeline.engine.settings import LoraSettings
from pipeline.routing import RoutingPolicy, SentenceSettings
from pipeline.storage.input.columns import Columns

_BACKEND_CLASSES: list[type] = [spec.settings for spec in BACKENDS.values()]
CLASSES = {
    cls.__name__: cls
    for cls in (PromptSettings, Sampling, RoutingPolicy, SentenceSettings, LoraSettings, Columns, *_BACKEND_CLASSES)
}


def default_of(name: str) -> Any:
    """Return the default of ``CLASS.FIELD``, as YAML has it: a list, not a tuple."""
    cls, _, field = name.partition(".")
    value = getattr(CLASSES[cls], field)
    return list(value) if isinstance(value, tuple) else value
