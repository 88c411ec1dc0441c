"""Text from token ids and mixtures. No Ray in it: usable and benchmarked alone, on CPU or GPU."""

from .check import load_bank
from .engine import Engine
from .lora import FusedLora, base_shapes
from .request import Failure, Request, Reroute, Sampling

__all__ = ["Engine", "Failure", "FusedLora", "Request", "Reroute", "Sampling", "base_shapes", "load_bank"]
