import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.routing.gate import ACCEPTANCES, gate_score, thresholds


def test_the_score_is_the_cosine_to_the_third_nearest_reference() -> None:
    angles = torch.tensor([0.0, 10.0, 40.0, 90.0]).deg2rad()
    references = torch.stack([angles.cos(), angles.sin()], dim=1)
    scores = gate_score(torch.tensor([[5.0, 0.0], [0.0, 0.1]]), references)
    torch.testing.assert_close(scores, torch.tensor([math.cos(math.radians(40)), math.cos(math.radians(80))]))


def test_fewer_references_than_neighbours_will_do() -> None:
    assert gate_score(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item() == pytest.approx(0)


@given(st.integers(0, 1000), st.integers(50, 400))
def test_the_thresholds_accept_the_stated_shares(seed: int, count: int) -> None:
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    for share, threshold in thresholds(scores).items():
        accepted = (scores.double() >= threshold).sum().item()
        assert accepted == pytest.approx(float(share) * count, abs=1)


def test_equal_scores_are_all_accepted() -> None:
    scores = torch.full((100,), 0.9)
    assert set(thresholds(scores)) == {str(share) for share in ACCEPTANCES}
    assert all((scores.double() >= threshold).all() for threshold in thresholds(scores).values())
