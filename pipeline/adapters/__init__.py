"""The adapter bank: PEFT adapters read and checked without building PEFT modules."""

from .bank import AdapterBank, BaseShapes
from .config import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig, is_adapter_name
from .weights import ModuleWeights

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "AdapterBank",
    "AdapterConfig",
    "BaseShapes",
    "ModuleWeights",
    "is_adapter_name",
]
