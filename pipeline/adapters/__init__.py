"""The adapter bank: PEFT adapters read, checked and stacked without building PEFT modules."""

from .bank import AdapterBank, BaseShapes
from .config import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig, is_adapter_name
from .stack import StackedModule

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterBank",
    "AdapterConfig",
    "BaseShapes",
    "StackedModule",
    "is_adapter_name",
]
