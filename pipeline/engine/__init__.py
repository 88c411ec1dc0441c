"""Text from token ids and mixtures. No Ray in it: usable and benchmarked alone, on CPU or GPU."""

from .engine import Engine
from .lora import FusedLora, base_shapes
from .request import Failure, Request, Sampling

__all__ = ["Engine", "Failure", "FusedLora", "Request", "Sampling", "base_shapes"]
