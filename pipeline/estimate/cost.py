"""What a job will take, from a sample that was answered here or from an earlier run: ranges, and what they rest on."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import UserError
from pipeline.job.preflight import changes
from pipeline.storage.commit.log import KINDS, CommitLog
from pipeline.storage.output.run import run_values
from pipeline.storage.store.objects import sizes
from pipeline.storage.store.redact import masked

from .sample import Answered, Routed

_Z = 1.96  # 95 % of a normal distribution


@dataclass(frozen=True)
class Range:
    """From ``low`` to ``high``."""

    low: float
    high: float

    @staticmethod
    def of_mean(values: np.ndarray, population: float = math.inf) -> "Range":
        """The 95 % interval of the mean of a population from some of its values, not below 0."""
        middle, count = float(values.mean()), len(values)
        left = math.sqrt(max(0.0, 1 - count / population))  # 0: all of them were seen
        spread = _Z * float(values.std(ddof=1)) / math.sqrt(count) * left if count > 1 else 0.0
        return Range(max(0.0, middle - spread), middle + spread)

    def times(self, number: float) -> "Range":
        """Both ends times a number."""
        return Range(self.low * number, self.high * number)


@dataclass(frozen=True)
class Cost:
    """What one record takes. ``seconds``: of one generating actor's device; ``size``: bytes in the output.

    ``basis``: where the figures are from; ``caveats``: what they do not say.
    """

    completion_tokens: Range
    seconds: Range
    size: Range
    basis: str
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """What a job takes. ``records``: those that will be answered; ``most_tokens``: that the answers can have at all."""

    records: Range
    prompt_tokens: Range
    completion_tokens: Range
    most_tokens: int
    device_hours: Range
    size: Range
    cost: Cost


def estimate(records: int, duplicates: int, routed: Routed, most_new_tokens: int, cost: Cost) -> Estimate:
    """For an input of so many records, of which ``duplicates`` repeat an id and are dead letters for sure.

    A sampled record is dead for another reason with the share that was seen in the sample (95 % Wilson interval).
    """
    other = sum(count for kind, count in routed.dead.items() if kind != "DuplicateId")
    left = records - duplicates
    looked_at = routed.records - routed.dead["DuplicateId"]
    dead = wilson(other, looked_at) if 0 < looked_at < left else Range(other / max(1, left), other / max(1, left))
    alive = Range(left * (1 - dead.high), left * (1 - dead.low))
    prompt = Range.of_mean(routed.prompt_tokens, alive.high) if len(routed.prompt_tokens) else Range(0, 0)
    return Estimate(
        alive,
        _product(alive, prompt),
        _product(alive, cost.completion_tokens),
        math.ceil(alive.high) * most_new_tokens,
        _product(alive, cost.seconds).times(1 / 3600),
        _product(alive, cost.size),
        cost,
    )


def cost_here(answered: Answered) -> Cost:
    """From answers of the sample."""
    batches, seconds = len(answered.seconds), answered.seconds
    caveats = ["start-up and the last rows of a shard are not in it"]
    if batches == 1:
        caveats.append("speed of a single batch: give --sample-seconds more for a range")
    return Cost(
        Range.of_mean(answered.completion_tokens),
        Range(float(seconds.min()), float(seconds.max())),
        Range(answered.bytes_low, answered.bytes_high),
        f"{len(answered.completion_tokens)} records of the sample answered here in {batches} batch(es) on"
        f" {answered.device}; the range is that of the batches",
        tuple(caveats),
    )


def cost_of_run(url: str, guard: dict[str, Any]) -> Cost:
    """From an earlier run. ``guard``: of the job that is estimated."""
    run = run_values(url) or {}
    counts, timings = run.get("counts", {}), run.get("timings", {})
    rate = timings.get("tokens_per_second")
    if not counts.get("data") or not rate:
        raise UserError(f"estimate: {masked(url)} is no run that has generated something; give the --output of one")
    tokens = counts["completion_tokens"] / counts["data"]
    seconds = tokens / rate * run.get("devices", {}).get("generate_actors", 1)
    size = _bytes(CommitLog(url)) / counts["data"]
    other = {key: value for key, value in guard.items() if key not in ("input", "limit")}
    differing = changes({key: run["guard"].get(key) for key in other}, other)
    caveats = ("start-up of that run is in it", *(f"that run differs in {change}" for change in differing))
    basis = f"the run {masked(url)}: {counts['data']:,} records at {rate:g} tokens/s"
    return Cost(Range(tokens, tokens), Range(seconds, seconds), Range(size, size), basis, caveats)


def wilson(found: int, of: int) -> Range:
    """95 % interval of a share."""
    centre = (found + _Z**2 / 2) / (of + _Z**2)
    spread = _Z / (of + _Z**2) * math.sqrt(found * (of - found) / of + _Z**2 / 4)
    return Range(max(0.0, centre - spread) if found else 0.0, min(1.0, centre + spread))


def _product(a: Range, b: Range) -> Range:
    return Range(a.low * b.low, a.high * b.high)


def _bytes(log: CommitLog) -> int:
    named = log.named()
    return sum(
        size
        for kind in KINDS
        for name, size in sizes(log.fs, log.path(kind)).items()
        if not named or f"{kind}/{name}" in named
    )
