"""The adapter bank: PEFT adapters read, checked and stacked without building PEFT modules."""

from .bank import AdapterBank, BaseShapes
from .config import AdapterConfig
from .stack import StackedModule

__all__ = ["AdapterBank", "AdapterConfig", "BaseShapes", "StackedModule"]
