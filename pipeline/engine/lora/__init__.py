"""The fused operator: rows and tokens with different mixtures share a batch, in one of three exact forms."""

from .layers import base_shapes
from .operator import FusedLora
from .settings import LoraMode, LoraSettings

__all__ = ["FusedLora", "LoraMode", "LoraSettings", "base_shapes"]
