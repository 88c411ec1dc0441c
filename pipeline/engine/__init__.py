"""Text from token ids and mixtures. No Ray in it: usable and benchmarked alone, on CPU or GPU."""

from .check import load_bank
from .choices import answer
from .engine import Engine
from .lora import FusedLora, base_shapes
from .overrides import overridden, sampling_problem, schema_text
from .request import Constraint, Failure, Request, Reroute, Sampling
from .server import EngineServer

__all__ = [
    "Constraint",
    "Engine",
    "EngineServer",
    "Failure",
    "FusedLora",
    "Request",
    "Reroute",
    "Sampling",
    "answer",
    "base_shapes",
    "load_bank",
    "overridden",
    "sampling_problem",
    "schema_text",
]
