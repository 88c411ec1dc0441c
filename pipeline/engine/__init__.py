"""Generate text from token ids and mixtures, on CPU or GPU. Does not use Ray.

Modules that need torch are imported on first use: many processes of a job only use the plain values, and importing
torch would cost each of them seconds of CPU.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .overrides import override_sampling, sampling_problem, schema_text
from .request import Constraint, Failure, Outcome, Request, Reroute, Sampling
from .settings import EngineSettings, LoraSettings

if TYPE_CHECKING:
    from .attached import Attached, attach, mixtures
    from .core.engine import Engine
    from .lora.layers import base_shapes, check_bank, load_bank
    from .lora.operator import FusedLora

__all__ = [
    "Attached",
    "Constraint",
    "Engine",
    "EngineSettings",
    "Failure",
    "FusedLora",
    "LoraSettings",
    "Outcome",
    "Request",
    "Reroute",
    "Sampling",
    "attach",
    "base_shapes",
    "check_bank",
    "load_bank",
    "mixtures",
    "override_sampling",
    "sampling_problem",
    "schema_text",
]

_LAZY = {
    "Attached": "attached",
    "Engine": "core.engine",
    "FusedLora": "lora.operator",
    "attach": "attached",
    "base_shapes": "lora.layers",
    "check_bank": "lora.layers",
    "load_bank": "lora.layers",
    "mixtures": "attached",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)
