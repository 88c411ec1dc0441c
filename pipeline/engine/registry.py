"""The engines that a config can name. A new engine needs a module here, an entry below and ``conf/engine/<name>.yaml``.

Importing the registry loads neither torch nor vLLM: the modules of engines import them when an engine starts.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

from pipeline.errors import UserError

from . import native, vllm
from .backend import BackendSpec, Capabilities
from .settings import BackendSettings

Feature = Literal["sentences", "quantization", "several_gpus"]
"""A capability that a config can ask for; see `Capabilities`."""

BACKENDS: dict[str, BackendSpec[Any]] = {spec.settings.backend: spec for spec in (native.SPEC, vllm.SPEC)}


def spec_of(settings: BackendSettings) -> BackendSpec[Any]:
    """Return the spec of the engine that the settings belong to."""
    return BACKENDS[settings.backend]


def capabilities_of(settings: BackendSettings) -> Capabilities:
    """Return what the engine of the settings can do."""
    return spec_of(settings).capabilities(settings)


def check_features(settings: BackendSettings, asked: Mapping[Feature, str]) -> None:
    """Raise `UserError` for the first feature that the engine lacks. ``asked``: the config that asks for each."""
    for feature, config in asked.items():
        problem = getattr(capabilities_of(settings), feature)
        if problem:
            raise UserError(f"config: {config}: {problem}")


def is_installed(spec: BackendSpec[Any]) -> bool:
    """Whether the package that the engine needs is installed."""
    return not spec.package or find_spec(spec.package) is not None


def check_installed(settings: BackendSettings) -> None:
    """Raise `UserError` if the package that the engine needs is not installed."""
    name, spec = settings.backend, spec_of(settings)
    if not is_installed(spec):
        raise UserError(
            f"config: engine={name} needs the package {spec.package}: pip install 'loraloom[{name}]' (docs/engines.md)"
        )
