"""Penalties and truncation against the logits processors of transformers and plain loops."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pipeline.engine.request import Sampling
from pipeline.engine.sampling.processors import TokenCounts, apply_penalties
from pipeline.engine.sampling.sampler import truncated_probabilities
from tests import examples

VOCABULARY = 40


def random_logits(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


@st.composite
def truncations(draw: st.DrawFn) -> Sampling:
    return Sampling(
        temperature=draw(st.floats(0.2, 3)),
        top_p=draw(st.just(1.0) | st.floats(0.05, 0.99)),
        top_k=draw(st.just(0) | st.integers(1, VOCABULARY + 5)),
        min_p=draw(st.just(0.0) | st.floats(0.01, 0.9)),
    )


def by_transformers(logits: torch.Tensor, own: Sampling) -> torch.Tensor:
    """Probabilities [1 x vocab] in vLLM's order, in fp64."""
    none: Any = None
    scores = TemperatureLogitsWarper(own.temperature)(none, logits.double())
    if own.min_p:
        scores = MinPLogitsWarper(own.min_p)(none, scores)
    if own.top_k:
        scores = TopKLogitsWarper(own.top_k)(none, scores)
    if own.top_p < 1:
        scores = TopPLogitsWarper(own.top_p)(none, scores)
    return scores.softmax(1)


@pytest.mark.long
@settings(max_examples=examples(200))
@given(st.lists(truncations(), min_size=1, max_size=5), st.integers(0, 10**6))
def test_truncation_equals_that_of_transformers_row_by_row(own: list[Sampling], seed: int) -> None:
    logits = random_logits(len(own), seed)
    kept = truncated_probabilities(logits, own)
    expected = torch.cat([by_transformers(logits[i : i + 1], one) for i, one in enumerate(own)])
    assert torch.allclose(kept / kept.sum(1, keepdim=True), expected, atol=1e-12)


def test_of_tied_tokens_the_first_are_kept() -> None:
    logits = torch.zeros(3, 8)
    own = [Sampling(temperature=1, top_k=3), Sampling(temperature=1, top_p=0.5), Sampling(temperature=1)]
    assert (truncated_probabilities(logits, own) > 0).sum(1).tolist() == [3, 4, 8]
    assert (truncated_probabilities(logits, own)[0] > 0).tolist() == [True] * 3 + [False] * 5


def counted(prompt: list[int], answer: list[int]) -> TokenCounts:
    counts = TokenCounts(prompt, len(answer))
    for token in answer:
        counts.add(token)
    return counts


TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=30)


@pytest.mark.long
@settings(max_examples=examples(100))
@given(
    st.lists(st.tuples(TOKENS, TOKENS, st.floats(0.5, 2), st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=4),
    st.integers(0, 10**6),
)
def test_penalties_equal_a_loop_over_the_definitions(
    rows: list[tuple[list[int], list[int], float, float, float]], seed: int
) -> None:
    logits = random_logits(len(rows), seed)
    expected = logits.clone()
    for row, (prompt, answer, repetition, presence, frequency) in enumerate(rows):
        for token in {*prompt, *answer}:
            value = expected[row, token]
            value = value / repetition if value > 0 else value * repetition
            expected[row, token] = value - frequency * answer.count(token) - presence * (token in answer)
    own = [
        Sampling(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
        for _, _, repetition, presence, frequency in rows
    ]
    apply_penalties(logits, range(len(rows)), [counted(prompt, answer) for prompt, answer, *_ in rows], own)
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_the_repetition_penalty_equals_that_of_transformers(penalty: float) -> None:
    logits = random_logits(1, 3)
    prompt, answer = [1, 5, 5, 9], [9, 2, 2]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + answer]), logits.clone())
    apply_penalties(logits, [0], [counted(prompt, answer)], [Sampling(repetition_penalty=penalty)])
    assert torch.allclose(logits, expected)
