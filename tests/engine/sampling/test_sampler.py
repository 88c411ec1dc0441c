"""Drawing tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.request import Request, Sampling
from pipeline.engine.sampling.sampler import choose_tokens, request_generator
from pipeline.records import Mixture


def generator(seed: int, name: str) -> torch.Generator:
    return request_generator(Request(name, [], Mixture()), Sampling(), seed)


def draws(logits: torch.Tensor, settings: Sampling, count: int) -> torch.Tensor:
    rows = logits.repeat(count, 1)
    return choose_tokens(rows, [settings] * count, [generator(0, f"r{i}") for i in range(count)])


def test_temperature_zero_takes_the_largest_logit() -> None:
    logits = torch.tensor([[0.1, 3.0, 2.9], [5.0, 1.0, 4.9]])
    chosen = choose_tokens(logits, [Sampling()] * 2, [generator(0, "a"), generator(0, "b")])
    assert chosen.tolist() == [1, 0]


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    counts = torch.bincount(draws(logits, Sampling(temperature=1.0), 8000), minlength=4) / 8000
    assert torch.allclose(counts, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.02)


def test_a_low_temperature_sharpens() -> None:
    logits = torch.tensor([0.6, 0.4]).log()
    share = (draws(logits, Sampling(temperature=0.25), 4000) == 0).float().mean()
    assert share == pytest.approx(0.6**4 / (0.6**4 + 0.4**4), abs=0.03)


@given(st.lists(st.floats(-8, 8), min_size=3, max_size=30), st.integers(1, 10), st.floats(0.05, 1.0))
def test_only_tokens_that_top_k_and_top_p_keep_are_drawn(values: list[float], top_k: int, top_p: float) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    probabilities = logits.softmax(0)
    ordered = sorted(probabilities.tolist(), reverse=True)[:top_k]
    kept, total = 0, 0.0
    while kept < len(ordered) and (kept == 0 or total / sum(ordered) < top_p - 1e-12):
        total += ordered[kept]
        kept += 1
    drawn = draws(logits, Sampling(temperature=1.0, top_k=top_k, top_p=top_p), 50)
    assert probabilities[drawn].min() >= ordered[kept - 1] - 1e-9


def test_a_generator_depends_on_seed_and_id_alone() -> None:
    def number(seed: int, name: str) -> float:
        return float(torch.rand((), generator=generator(seed, name)))

    assert number(0, "a") == number(0, "a")
    assert len({number(0, "a"), number(1, "a"), number(0, "b"), number(-1, "a")}) == 4
