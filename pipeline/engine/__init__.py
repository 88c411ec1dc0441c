"""Text from token ids and mixtures. No Ray in it: usable and benchmarked alone, on CPU or GPU.

What needs torch and transformers is loaded when it is first asked for: many processes of a job use the plain values
alone, and would pay seconds of CPU each.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .lora.settings import LoraSettings
from .overrides import overridden, sampling_problem, schema_text
from .request import Constraint, Failure, Request, Reroute, Sampling
from .settings import EngineSettings

if TYPE_CHECKING:
    from .attach import Attached, attach, mixtures
    from .core.engine import Engine
    from .lora.check_bank import load_bank
    from .lora.layers import base_shapes
    from .lora.operator import FusedLora
    from .scoring.choices import answer
    from .serving.server import EngineServer

__all__ = [
    "Attached",
    "Constraint",
    "Engine",
    "EngineServer",
    "EngineSettings",
    "Failure",
    "FusedLora",
    "LoraSettings",
    "Request",
    "Reroute",
    "Sampling",
    "answer",
    "attach",
    "base_shapes",
    "load_bank",
    "mixtures",
    "overridden",
    "sampling_problem",
    "schema_text",
]

_LATER = {
    "Attached": "attach",
    "Engine": "core.engine",
    "EngineServer": "serving.server",
    "FusedLora": "lora.operator",
    "answer": "scoring.choices",
    "attach": "attach",
    "base_shapes": "lora.layers",
    "load_bank": "lora.check_bank",
    "mixtures": "attach",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATER[name]}", __name__), name)
