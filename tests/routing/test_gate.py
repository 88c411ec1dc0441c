import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.routing.gate import calibrate, gate_score


def test_the_score_is_high_where_a_class_is_clearly_seen() -> None:
    scores = gate_score(torch.tensor([[9.0, -3.0], [9.0, 9.0], [-3.0, -3.0]]))
    torch.testing.assert_close(scores, torch.tensor([9.0, 9.0 + math.log(2), -3.0 + math.log(2)]), atol=1e-4, rtol=0)


@given(st.integers(0, 1000), st.integers(50, 400), st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5]))
def test_the_threshold_rejects_the_stated_share(seed: int, count: int, share: float) -> None:
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    rejected = (scores.double() < calibrate(scores, share)).sum().item()
    assert rejected == pytest.approx(share * count, abs=1)


def test_equal_scores_are_all_accepted() -> None:
    scores = torch.full((100,), 0.9)
    assert not (scores.double() < calibrate(scores, 0.05)).any()
