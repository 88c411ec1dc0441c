"""Settings of a job on the tiny model, for all tests of stages."""

from pathlib import Path
from typing import Any

from pipeline.engine import Sampling
from pipeline.routing import RoutingPolicy
from pipeline.settings import JobSettings, ModelRef


def tiny_job(folder: Path, model: Path, bank: Path, router: Path, **changes: Any) -> JobSettings:
    """A job from ``in`` to ``out`` below a folder, all of whose records may be dead."""
    values: dict[str, Any] = {
        "input": str(folder / "in"),
        "output": str(folder / "out"),
        "model": ModelRef(str(model), "fp32", "raw"),
        "bank": str(bank),
        "router": str(router),
        "sampling": Sampling(max_new_tokens=8),
        # The gate takes prompts between two classes for strange ones; here they must be blended.
        "routing": RoutingPolicy(gate=False),
        "error_budget": 1.0,
        "shard_records": 16,
    }
    return JobSettings(**(values | changes))
