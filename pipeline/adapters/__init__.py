"""The adapter bank: PEFT adapters read and checked without building PEFT modules."""

from .bank import AdapterBank, BaseShapes
from .config import AdapterConfig
from .weights import ModuleWeights

__all__ = ["AdapterBank", "AdapterConfig", "BaseShapes", "ModuleWeights"]
