"""Estimate tokens, time and size of a job from an answered sample or from an earlier run."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.job.guard import changes
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.output_files import KINDS
from pipeline.storage.output.run import run_values
from pipeline.storage.store.objects import list_sizes
from pipeline.storage.store.redact import masked

from .sample import AnsweredSample, RoutedSample

_Z = 1.96  # 95 % of a normal distribution


@dataclass(frozen=True)
class Range:
    """An interval from ``low`` to ``high``."""

    low: float
    high: float

    @staticmethod
    def of_mean(values: np.ndarray, population: float = math.inf) -> "Range":
        """Return the 95 % interval of a population's mean from a sample of its values, not below 0."""
        mean, count = float(values.mean()), len(values)
        correction = math.sqrt(max(0.0, 1 - count / population))  # 0 if the sample is the whole population
        margin = _Z * float(values.std(ddof=1)) / math.sqrt(count) * correction if count > 1 else 0.0
        return Range(max(0.0, mean - margin), mean + margin)

    def times(self, factor: "Range | float") -> "Range":
        """Multiply both ends by a number, or by the ends of another range."""
        low, high = (factor.low, factor.high) if isinstance(factor, Range) else (factor, factor)
        return Range(self.low * low, self.high * high)


@dataclass(frozen=True)
class Cost:
    """The cost of one record. ``seconds``: of one generating actor's device; ``size``: bytes in the output.

    ``basis``: the source of the figures; ``caveats``: their limits. Both are shown to the user.
    """

    completion_tokens: Range
    seconds: Range
    size: Range
    basis: str
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """The cost of a job. ``records``: answered ones; ``max_tokens``: upper bound of the completion tokens."""

    records: Range
    prompt_tokens: Range
    completion_tokens: Range
    max_tokens: int
    device_hours: Range
    size: Range
    cost: Cost


def estimate(records: int, duplicates: int, routed: RoutedSample, max_new_tokens: int, cost: Cost) -> Estimate:
    """Estimate the cost of ``records`` records, of which ``duplicates`` repeat an id and become dead letters.

    The share of other dead letters is that of the sample, with its 95 % Wilson interval.
    """
    other = sum(count for kind, count in routed.dead.items() if kind != "DuplicateId")
    unique = records - duplicates
    sampled = routed.records - routed.dead["DuplicateId"]
    dead = wilson(other, sampled) if 0 < sampled < unique else Range(other / max(1, unique), other / max(1, unique))
    alive = Range(unique * (1 - dead.high), unique * (1 - dead.low))
    prompt = Range.of_mean(routed.prompt_tokens, alive.high) if len(routed.prompt_tokens) else Range(0, 0)
    return Estimate(
        alive,
        alive.times(prompt),
        alive.times(cost.completion_tokens),
        math.ceil(alive.high * routed.answers_each) * max_new_tokens,
        alive.times(cost.seconds).times(1 / 3600),
        alive.times(cost.size),
        cost,
    )


def cost_of_sample(answered: AnsweredSample) -> Cost:
    """Return the cost of a record from the sample's answers."""
    batches, seconds = len(answered.seconds), answered.seconds
    caveats = ["without start-up and the last rows of a shard"]
    if batches == 1:
        caveats.append("the speed of a single batch; raise --sample-seconds for a range")
    return Cost(
        Range.of_mean(answered.completion_tokens),
        Range(float(seconds.min()), float(seconds.max())),
        Range(answered.bytes_low, answered.bytes_high),
        f"{len(answered.completion_tokens)} records of the sample, answered here in {batches} batch(es) on"
        f" {answered.device}; the range is that of the batches",
        tuple(caveats),
    )


def cost_of_run(url: str, guard: dict[str, Any]) -> Cost:
    """Return the cost of a record of a run; `UserError` if it generated nothing. ``guard``: of the job to estimate."""
    run = run_values(url) or {}
    counts, timings = run.get("counts", {}), run.get("timings", {})
    rate = timings.get("tokens_per_second")
    if not counts.get("data") or not rate:
        raise UserError(f"estimate: {masked(url)} is not a run that generated anything; give the --output of one")
    tokens = counts["completion_tokens"] / counts["data"]
    seconds = tokens / rate * run.get("devices", {}).get("generate_actors", 1)
    size = _bytes(MarkerStore(url)) / counts["data"]
    other = {key: value for key, value in guard.items() if key not in ("input", "limit")}
    differences = changes({key: run["guard"].get(key) for key in other}, other)
    caveats = ("with the start-up of that run", *(f"that run differs in {change}" for change in differences))
    basis = f"the run {masked(url)}: {counts['data']:,} records at {rate:g} tokens/s"
    return Cost(Range(tokens, tokens), Range(seconds, seconds), Range(size, size), basis, caveats)


def wilson(count: int, total: int) -> Range:
    """Return the 95 % Wilson score interval of a share of which ``count`` of ``total`` were seen."""
    centre = (count + _Z**2 / 2) / (total + _Z**2)
    margin = _Z / (total + _Z**2) * math.sqrt(count * (total - count) / total + _Z**2 / 4)
    return Range(max(0.0, centre - margin) if count else 0.0, min(1.0, centre + margin))


def _bytes(markers: MarkerStore) -> int:
    referenced = markers.referenced_files()
    return sum(
        size
        for kind in KINDS
        for name, size in list_sizes(markers.fs, markers.path(kind)).items()
        if not referenced or f"{kind}/{name}" in referenced
    )
