"""The config of `loraloom generate`: composed from words of the command line, and printed for people."""

from collections.abc import Sequence
from typing import Any

from pipeline.storage.store.redact import masked

from .compose import load_settings
from .schema import GenerateConfig


def load_config(words: Sequence[str]) -> GenerateConfig:
    """Compose and check the config; `UserError` with one line for each thing that is wrong."""
    return load_settings("generate", words, GenerateConfig)


def shown_config(config: GenerateConfig) -> dict[str, Any]:
    """Return the config as JSON values, with masked credentials in its URLs."""
    values: dict[str, Any] = _shown(config.model_dump(mode="json"))
    return values


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_shown(part) for part in value]
    return masked(value) if isinstance(value, str) and "://" in value else value
