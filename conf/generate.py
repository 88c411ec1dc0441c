"""The config of `jobs.generate`: composed from the words of a command, and shown to people."""

from collections.abc import Sequence
from typing import Any

from pipeline.storage.store.redact import masked

from .compose import load_settings
from .schema import GenerateConfig


def load_config(words: Sequence[str]) -> GenerateConfig:
    """The config that some words give; `UserError` with all that is wrong in it."""
    return load_settings("generate", words, GenerateConfig)


def shown_config(config: GenerateConfig) -> dict[str, Any]:
    """The config for people: URLs in it (of a grammar, of a cluster) without credentials."""
    values: dict[str, Any] = _shown(config.model_dump(mode="json"))
    return values


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_shown(part) for part in value]
    return masked(value) if isinstance(value, str) and "://" in value else value
