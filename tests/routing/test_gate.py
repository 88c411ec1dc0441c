import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.routing.gate import calibrate, class_centroids, gate_score


def test_a_centroid_is_the_mean_direction_of_its_class() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 9.0], [0.0, -3.0]])
    centroids = class_centroids(features, torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(centroids, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))


def test_the_score_is_the_cosine_to_the_nearest_centroid() -> None:
    centroids = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scores = gate_score(torch.tensor([[5.0, 0.0], [1.0, 1.0], [-1.0, -1.0]]), centroids)
    torch.testing.assert_close(scores, torch.tensor([1.0, 0.5**0.5, -(0.5**0.5)]))


@given(st.integers(0, 1000), st.integers(50, 400), st.sampled_from([0.0, 0.01, 0.05, 0.2, 0.5]))
def test_the_threshold_rejects_the_stated_share(seed: int, count: int, share: float) -> None:
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    rejected = (scores.double() < calibrate(scores, share)).sum().item()
    assert rejected == pytest.approx(share * count, abs=1)


def test_equal_scores_are_all_accepted() -> None:
    scores = torch.full((100,), 0.9)
    assert not (scores.double() < calibrate(scores, 0.05)).any()


def test_features_of_zero_have_a_score() -> None:
    assert gate_score(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).tolist() == [0.0]
