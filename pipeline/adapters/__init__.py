"""The adapter bank: PEFT adapters read and checked without building PEFT modules."""

from .bank import Adapter, AdapterBank, BaseShapes, adapter_names
from .config import is_adapter_name
from .files import CONFIG_FILE, WEIGHTS_FILE, adapter_files, is_checkpoint, weight_files
from .weights import ModuleWeights

__all__ = [
    "CONFIG_FILE",
    "WEIGHTS_FILE",
    "Adapter",
    "AdapterBank",
    "BaseShapes",
    "ModuleWeights",
    "adapter_files",
    "adapter_names",
    "is_adapter_name",
    "is_checkpoint",
    "weight_files",
]
