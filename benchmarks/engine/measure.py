"""Time variants in turn, several times, and compare them within one turn."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from benchmarks.engine.ways import Way
from benchmarks.engine.workloads import Workload

Case = tuple[Way, Workload]


def synchronise() -> None:
    """Wait until the GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def interleaved(cases: Mapping[str, Case], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each case, ``repeats`` times, after a warm-up run of each."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, (way, requests) in cases.items():
            start = time.perf_counter()
            way(requests)
            synchronise()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(cases: Mapping[str, Case], seconds: Mapping[str, list[float]], over: str) -> dict[str, Any]:
    """Return median tokens per second, and ratios of seconds to the case ``over`` in the same turn."""
    figures = {}
    for name, (_, requests) in cases.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds[over], strict=True)]
        figures[name] = {
            "tokens_per_second": requests.tokens / statistics.median(seconds[name]),
            f"seconds_over_{over}": _spread(ratios),
            "seconds": seconds[name],
        }
    return figures


def steps_over(milliseconds: Mapping[str, Sequence[float]], over: str) -> dict[str, Any]:
    """Return median and spread of each variant's steps, and of their ratios to ``over`` in the same round."""
    return {
        name: {
            "step_ms": _spread(taken),
            f"step_over_{over}": _spread([a / b for a, b in zip(taken, milliseconds[over], strict=True)]),
            "milliseconds": [round(value, 2) for value in taken],
        }
        for name, taken in milliseconds.items()
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Return median and extremes, and quartiles of eight or more values."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    if len(values) >= 8:
        found["quarter"], _, found["three_quarters"] = statistics.quantiles(values, n=4)
    return found
