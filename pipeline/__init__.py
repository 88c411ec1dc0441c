"""Batch inference that answers every record with its own blend of LoRA adapters.

    from pipeline import generate, route, read_run, Generate

Names are imported when they are first used: `import pipeline` itself loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import build_processor, generate, route
    from .batches import Generate, Route
    from .storage import read_dead, read_run

__all__ = ["Generate", "Route", "build_processor", "generate", "read_dead", "read_run", "route"]
_HOMES = {
    "build_processor": ".api",
    "generate": ".api",
    "route": ".api",
    "Generate": ".batches",
    "Route": ".batches",
    "read_run": ".storage",
    "read_dead": ".storage",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
