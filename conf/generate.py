"""The config of `loraloom generate`: composed from words of the command line, and printed for people."""

from collections.abc import Sequence
from typing import Any

from pipeline.engine.choice import AUTO, NAMED, Choice, engine_of_keys
from pipeline.storage.store.redact import masked

from .compose import load_settings
from .schema import GenerateConfig


def load_config(words: Sequence[str]) -> GenerateConfig:
    """Compose and check the config; `UserError` with one line for each thing that is wrong.

    A key that only one engine has chooses that engine, unless a word names another.
    """
    choice = engine_of_words(words)
    return load_settings("generate", [*words, f"engine={choice.name}"] if choice else words, GenerateConfig)


def engine_of_words(words: Sequence[str]) -> Choice | None:
    """Return the engine of ``engine=NAME``, or else of a key like ``engine.kv_tokens``; None if nothing chooses one.

    Raises `UserError` for keys of two engines.
    """
    named = [word.partition("=")[2] for word in words if word.startswith(("engine=", "engine.backend="))]
    if named and named[-1] != AUTO:
        return Choice(named[-1], NAMED)
    keys = [word.lstrip("+~").partition("=")[0] for word in words]
    return engine_of_keys(key.removeprefix("engine.") for key in keys if key.startswith("engine."))


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
