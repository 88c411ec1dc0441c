import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import normalize

from pipeline.routing.centroids import CentroidHead, centroid


def directions(count: int, size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, size, generator=generator, dtype=torch.float64), dim=1)


def around(direction: torch.Tensor, count: int, seed: int, spread: float = 0.05) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return direction + spread * torch.randn(count, len(direction), generator=generator, dtype=torch.float64)


def make_head(seed: int) -> tuple[CentroidHead, torch.Tensor, torch.Tensor]:
    """Four trained classes, held-out prompts of them, and the direction of a fifth."""
    points = directions(5, 16, seed)
    held_out = torch.cat([around(point, 50, seed + n) for n, point in enumerate(points[:4])])
    return CentroidHead.of(points[:4]), held_out, points[4]


def test_without_added_classes_nothing_changes() -> None:
    head, held_out, _ = make_head(0)
    trained = torch.rand(len(held_out), 4, dtype=torch.float64).softmax(1)
    assert torch.equal(head.probabilities(held_out, trained), trained)


@given(st.integers(0, 200), st.integers(1, 3))
def test_probabilities_sum_to_one_and_keep_the_proportions_of_the_trained(seed: int, added: int) -> None:
    head, held_out, new = make_head(seed)
    for n in range(added):
        head = head.with_class(around(new, 8, seed + n), held_out, 0.01)
    trained = torch.randn(len(held_out), 4, dtype=torch.float64).softmax(1)
    now = head.probabilities(held_out, trained)
    assert now.shape == (len(held_out), 4 + added)
    torch.testing.assert_close(now.sum(1), torch.ones(len(held_out), dtype=torch.float64))
    torch.testing.assert_close(now[:, :4] / now[:, :4].sum(1, keepdim=True), trained)


@given(st.integers(0, 200), st.sampled_from([0.0, 0.01, 0.1]))
def test_an_added_class_takes_no_more_than_the_stated_share_of_held_out_prompts(seed: int, share: float) -> None:
    head, held_out, new = make_head(seed)
    head = head.with_class(around(new, 8, seed), held_out, share)
    certain = torch.full((len(held_out), 4), 0.25, dtype=torch.float64)
    taken = (head.probabilities(held_out, certain)[:, 4] > 0.5).double().mean()
    assert taken <= share + 1 / len(held_out)


def test_prompts_of_an_added_class_go_to_it() -> None:
    head, held_out, new = make_head(3)
    head = head.with_class(around(new, 8, 1), held_out, 0.005)
    prompts = around(new, 100, 2)
    probabilities = head.probabilities(prompts, torch.full((100, 4), 0.25, dtype=torch.float64))
    assert (probabilities.argmax(1) == 4).double().mean() > 0.95


def test_prompts_of_an_added_class_are_accepted_and_others_are_not() -> None:
    head, held_out, new = make_head(3)
    assert not head.accepts(held_out).any()
    head = head.with_class(around(new, 16, 1), held_out, 0.005)
    assert head.accepts(around(new, 200, 2)).double().mean() > 0.9
    assert not head.accepts(held_out).any()
    strange = new + 0.8 * directions(1, 16, 77)[0]
    assert not head.accepts(strange.unsqueeze(0)).any()


def test_the_length_of_an_example_does_not_count() -> None:
    examples = directions(6, 16, 1)
    scaled = examples * torch.tensor([[1.0], [50.0], [0.1], [3.0], [1.0], [9.0]], dtype=torch.float64)
    torch.testing.assert_close(centroid(examples), centroid(scaled))
