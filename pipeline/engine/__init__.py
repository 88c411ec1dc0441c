"""Text from token ids and mixtures. No Ray in it: usable and benchmarked alone, on CPU or GPU."""

from .attach import Attached, attach, mixtures
from .check import load_bank
from .choices import answer
from .engine import Engine
from .lora import FusedLora, LoraSettings, base_shapes
from .overrides import overridden, sampling_problem, schema_text
from .request import Constraint, Failure, Request, Reroute, Sampling
from .server import EngineServer

__all__ = [
    "Attached",
    "Constraint",
    "Engine",
    "EngineServer",
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
