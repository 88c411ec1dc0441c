"""The adapter bank: PEFT adapters read and checked without building PEFT modules."""

from .bank import Adapter, AdapterBank, BaseShapes, adapter_names
from .config import CONFIG_FILE, WEIGHTS_FILE, is_adapter_name
from .weights import ModuleWeights

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "Adapter",
    "AdapterBank",
    "BaseShapes",
    "ModuleWeights",
    "adapter_names",
    "is_adapter_name",
]
