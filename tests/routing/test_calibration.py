import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.routing.calibration import (
    ACCEPTANCES,
    Reliability,
    fit_temperature,
    gate_score,
    gate_thresholds,
)
from tests import examples


@settings(max_examples=examples(12))
@given(st.integers(0, 50), st.sampled_from([0.3, 1.0, 2.5, 6.0]))
def test_the_temperature_of_overconfident_logits_is_found(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    honest = torch.randn(6000, 4, generator=generator, dtype=torch.float64) * 1.5
    targets = torch.multinomial(honest.softmax(1), 1, generator=generator).flatten()
    assert fit_temperature(honest * temperature, targets) == pytest.approx(temperature, rel=0.1)


def test_scaling_lowers_the_error_of_overconfident_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    honest = torch.randn(5000, 4, generator=generator)
    targets = torch.multinomial(honest.softmax(1), 1, generator=generator).flatten()
    logits = honest * 4
    before = Reliability.of(logits.softmax(1), targets).error
    after = Reliability.of((logits / fit_temperature(logits, targets)).softmax(1), targets).error
    assert after < 0.03 < 0.2 < before


def test_the_error_by_hand() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
    targets = torch.tensor([0, 1, 0, 1])
    # Bins of 1/15: 0.9 twice (half right, 0.4 off), 0.6 (right, 0.4 off), 0.7 (right, 0.3 off).
    assert Reliability.of(probabilities, targets).error == pytest.approx((2 * 0.4 + 0.4 + 0.3) / 4, abs=1e-6)
    table = Reliability.of(probabilities, targets, 4)
    assert (table.counts.tolist(), table.accuracy.tolist()) == ([0, 0, 2, 2], [0, 0, 1, 0.5])
    assert table.confidence.tolist() == pytest.approx([0, 0, 0.65, 0.9])


def test_logits_that_are_always_right_end_at_the_lowest_temperature() -> None:
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    assert 0 < fit_temperature(logits, torch.tensor([0, 1])) < 0.1


def test_the_score_is_the_cosine_to_the_nearest_centroid() -> None:
    angles = torch.tensor([10.0, 40.0, 80.0]).deg2rad()
    centroids = torch.stack([angles.cos(), angles.sin()], dim=1)
    scores = gate_score(torch.tensor([[5.0, 0.0], [0.0, 0.1]]), centroids)
    torch.testing.assert_close(scores, torch.tensor([math.cos(math.radians(10)), math.cos(math.radians(10))]))


@given(st.integers(0, 1000), st.integers(50, 400))
def test_the_gate_thresholds_accept_the_stated_shares(seed: int, count: int) -> None:
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    for share, threshold in gate_thresholds(scores).items():
        accepted = (scores.double() >= threshold).sum().item()
        assert accepted == pytest.approx(float(share) * count, abs=1)


def test_equal_scores_are_all_accepted() -> None:
    scores = torch.full((100,), 0.9)
    assert set(gate_thresholds(scores)) == {str(share) for share in ACCEPTANCES}
    assert all((scores.double() >= threshold).all() for threshold in gate_thresholds(scores).values())
