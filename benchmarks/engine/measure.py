"""Interleaved timing: every way in turn, again and again, and ratios within one turn."""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.records import Mixture

from .ways import Way
from .workloads import Workload

Case = tuple[Way, Workload]


def interleaved(cases: Mapping[str, Case], repeats: int) -> dict[str, list[float]]:
    """Seconds of each case, ``repeats`` times, after one run of each that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repeats + 1):
        for name, (way, asked) in cases.items():
            start = time.perf_counter()
            way(asked)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(cases: Mapping[str, Case], seconds: Mapping[str, list[float]], over: str) -> dict[str, Any]:
    """Median tokens a second, and the ratio of seconds to those of the case ``over`` in the same turn."""
    figures = {}
    for name, (_, asked) in cases.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds[over], strict=True)]
        figures[name] = {
            "tokens_per_second": asked.tokens / statistics.median(seconds[name]),
            f"seconds_over_{over}": _spread(ratios),
            "seconds": seconds[name],
        }
    return figures


def stepwise(ways: Mapping[str, tuple[Way, Workload, Sequence[Mixture]]]) -> dict[str, Case]:
    """Each way with its mixtures twice, as asked and with one new token (``name, 1``): what `steps` reads."""
    cases = {}
    for name, (way, asked, mixtures) in ways.items():
        cases[name] = (way, asked.with_mixtures(mixtures))
        cases[f"{name}, 1"] = (way, asked.with_new_tokens(1).with_mixtures(mixtures))
    return cases


def steps(seconds: Mapping[str, list[float]], new_tokens: int, over: str) -> dict[str, Any]:
    """Milliseconds of a decode step: what ``new_tokens`` cost more than one, by step.

    ``seconds`` holds for each name its time with one new token under ``name, 1``.
    """
    names = [name for name in seconds if not name.endswith(", 1")]
    found = {
        name: [
            1000 * (whole - first) / (new_tokens - 1)
            for whole, first in zip(seconds[name], seconds[f"{name}, 1"], strict=True)
        ]
        for name in names
    }
    return {
        name: {
            "step_ms": _spread(values),
            f"step_over_{over}": _spread([a / b for a, b in zip(values, found[over], strict=True)]),
        }
        for name, values in found.items()
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
