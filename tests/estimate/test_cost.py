"""Estimates from samples: whole samples give exact counts, others intervals that hold the truth."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.estimate.cost import Cost, Range, estimate, wilson
from pipeline.estimate.sample import RoutedSample

COST = Cost(Range(10, 12), Range(0.5, 0.6), Range(100, 200), "a test")


def routed(tokens: list[int], dead: Counter[str]) -> RoutedSample:
    return RoutedSample(pa.table({"row": range(len(tokens) + dead.total())}), np.array(tokens), Counter(), dead, 0)


def test_a_sample_of_everything_is_exact() -> None:
    found = estimate(6, 1, routed([3, 5, 7], Counter(DuplicateId=1, BadPrompt=2)), 16, COST)
    assert found.records == Range(3, 3)
    assert found.prompt_tokens == Range(15, 15)
    assert found.completion_tokens == Range(30, 36)
    assert found.max_tokens == 48
    in_parts = replace(routed([3, 5, 7], Counter()), answers_each=4 / 3)
    assert estimate(3, 0, in_parts, 16, COST).max_tokens == 64
    assert (found.device_hours.low * 3600, found.device_hours.high * 3600) == pytest.approx((1.5, 1.8))
    assert found.size == Range(300, 600)


def test_intervals_hold_the_true_counts_as_often_as_they_say() -> None:
    generator = np.random.default_rng(5)
    lengths = generator.lognormal(4, 0.8, 20_000).astype(int) + 1
    bad = generator.random(20_000) < 0.03
    alive, tokens, tries = 0, 0, 300
    for _ in range(tries):
        chosen = generator.choice(20_000, 512, replace=False)
        dead = int(bad[chosen].sum())
        sample = routed(lengths[chosen][~bad[chosen]].tolist(), Counter(BadPrompt=dead))
        found = estimate(20_000, 0, sample, 16, COST)
        alive += found.records.low <= (~bad).sum() <= found.records.high
        tokens += found.prompt_tokens.low <= lengths[~bad].sum() <= found.prompt_tokens.high
    assert alive / tries > 0.9
    assert tokens / tries > 0.9


def test_a_share_that_was_not_seen_may_still_be_there() -> None:
    none = wilson(0, 512)
    assert none.low == 0
    assert 0.005 < none.high < 0.01
    assert wilson(512, 512).high == 1
