"""Bootstrap intervals."""

import numpy as np
import pytest

from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import BootstrapSettings, Floats, interval, resampled

SETTINGS = BootstrapSettings(1000, seed=0)


def mean(sums: Floats) -> Floats:
    quotient: Floats = sums[:, 1] / sums[:, 0]
    return quotient


def ones_and(values: list[float]) -> Floats:
    return np.array([[1.0, value] for value in values])


def test_the_interval_of_a_share_is_near_the_normal_one() -> None:
    samples = resampled(ones_and([1.0] * 60 + [0.0] * 40), mean, SETTINGS, "task")
    low, high = interval(samples)
    assert samples.shape == (1000,)
    half = 1.96 * (0.6 * 0.4 / 100) ** 0.5
    assert (low, high) == pytest.approx((0.6 - half, 0.6 + half), abs=0.02)


def test_draws_repeat_by_seed_and_group_and_are_shared_by_configurations() -> None:
    some = ones_and([float(i) for i in range(20)])
    better = ones_and([float(i) + 2 for i in range(20)])
    first = resampled(some, mean, SETTINGS, "a")
    assert np.array_equal(first, resampled(some, mean, SETTINGS, "a"))
    assert resampled(better, mean, SETTINGS, "a") - first == pytest.approx(2)
    other = resampled(some, mean, SETTINGS, "b")
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.15
    assert not np.array_equal(first, resampled(some, mean, BootstrapSettings(1000, seed=1), "a"))


def test_many_records_are_drawn_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_CELLS", 64)
    blocks: list[int] = []

    def counted(sums: Floats) -> Floats:
        blocks.append(len(sums))
        assert (sums[:, 0] == 10).all()
        return mean(sums)

    samples = resampled(ones_and([0.0, 1.0] * 5), counted, BootstrapSettings(100, seed=0), "blocks")
    assert len(samples) == 100
    assert max(blocks) == 6
    assert len(np.unique(samples.round(6))) > 5


def test_one_record_has_an_interval_of_no_width() -> None:
    assert interval(resampled(ones_and([1.0]), mean, SETTINGS, "one")) == (1.0, 1.0)
