"""Text from token ids and mixtures. No Ray in it: usable and benchmarked alone, on CPU or GPU."""

from .attach import Attached, attach, mixtures
from .engine import Engine
from .lora import FusedLora, LoraSettings, base_shapes
from .request import Failure, Request, Reroute, Sampling

__all__ = [
    "Attached",
    "Engine",
    "Failure",
    "FusedLora",
    "LoraSettings",
    "Request",
    "Reroute",
    "Sampling",
    "attach",
    "base_shapes",
    "mixtures",
]
