"""Text from token ids and mixtures. No Ray in it: usable and benchmarked alone, on CPU or GPU."""

from .engine import Engine
from .lora import FusedLora, base_shapes
from .request import Failure, Request, Reroute, Sampling
from .server import EngineServer

__all__ = ["Engine", "EngineServer", "Failure", "FusedLora", "Request", "Reroute", "Sampling", "base_shapes"]
