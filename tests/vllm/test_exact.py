"""Mixtures through vLLM against explicitly merged weights, and against the native engine."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from pipeline.engine import Request
from pipeline.models import load_model
from pipeline.records import Completion, Mixture
from tests.engine.reference import logits_of, merged

from .engines import Engines, mixtures_of, smollm

pytestmark = pytest.mark.vllm

# bf16 has 8 bits: two logits near 16 that are rounded apart differ by 1/8.
NEAR_TIE = {"fp32": 1e-3, "bf16": 0.25}


def merged_logprobs(model: Any, engines: Engines, mixture: Mixture, prompt: list[int], new: list[int]) -> torch.Tensor:
    """Log probabilities [new tokens x vocabulary] of a model whose weights are merged, in fp32."""
    logits = logits_of(merged(model, engines.bank, mixture), [*prompt, *new])
    return logits[len(prompt) - 1 : -1].float().log_softmax(1)


def test_fp32_logprobs_equal_those_of_merged_weights(fp32: Engines) -> None:
    model = load_model(smollm(), "fp32")
    requests = fp32.requests(mixtures_of(fp32.bank), 10, logprobs=5)
    worst = 0.0
    for request, answer in zip(requests, fp32.vllm.answer(requests), strict=True):
        assert isinstance(answer, Completion)
        assert answer.logprobs
        new = [token.token_id for token in answer.logprobs]
        expected = merged_logprobs(model, fp32, request.mixture, list(request.tokens), new)
        for step, token in zip(expected, answer.logprobs, strict=True):
            for one in (token, *token.top):
                worst = max(worst, abs(float(step[one.token_id]) - one.logprob))
            assert [one.token_id for one in token.top] == step.topk(5).indices.tolist()
    print(f"largest difference in fp32: {worst:.1e}")
    assert worst < 1e-4


def test_bf16_logprobs_are_as_near_to_exact_ones_as_bf16_itself(engines: Callable[[str], Engines]) -> None:
    """As those of weights merged in bf16, and as those of the base model, which no adapter touches."""
    bf16 = engines("bf16")
    exact, half = load_model(smollm(), "fp32"), load_model(smollm(), "bf16")

    def chosen(model: Any, request: Request, new: list[int]) -> torch.Tensor:
        found = merged_logprobs(model, bf16, request.mixture, list(request.tokens), new)
        return found.gather(1, torch.tensor(new).unsqueeze(1))[:, 0]

    def off(mixtures: list[Mixture], count: int) -> tuple[float, float]:
        """Mean differences of the tokens of some answers: of vLLM, and of transformers with merged bf16 weights."""
        requests = bf16.requests(mixtures, count, logprobs=0)
        ours, theirs = [], []
        for request, answer in zip(requests, bf16.vllm.answer(requests), strict=True):
            assert isinstance(answer, Completion)
            assert answer.logprobs
            new = [token.token_id for token in answer.logprobs]
            expected = chosen(exact, request, new)
            ours.append(torch.tensor([token.logprob for token in answer.logprobs]) - expected)
            theirs.append(chosen(half, request, new) - expected)
        found, merged_in_bf16 = (float(torch.cat(parts).abs().mean()) for parts in (ours, theirs))
        return found, merged_in_bf16

    base, *mixtures = mixtures_of(bf16.bank)
    found, merged_in_bf16 = off(mixtures, 12)
    floor, _ = off([base], 12)
    print(
        f"mean differences in bf16: mixtures {found:.1e}, merged weights {merged_in_bf16:.1e}, base model {floor:.1e}"
    )
    assert found < 1.25 * merged_in_bf16 + 1e-3
    assert found < 1.5 * floor + 1e-3


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_greedy_answers_are_those_of_the_native_engine_but_for_near_ties(
    engines: Callable[[str], Engines], dtype: str
) -> None:
    both = engines(dtype)
    requests = both.requests(mixtures_of(both.bank), 40, logprobs=2)
    equal = 0
    for native, vllm in both.both(requests):
        assert native.logprobs
        assert vllm.logprobs
        pairs = list(zip(native.logprobs, vllm.logprobs, strict=False))
        apart = next((place for place, (a, b) in enumerate(pairs) if a.token_id != b.token_id), None)
        if apart is None:
            assert (native.output, native.finish_reason) == (vllm.output, vllm.finish_reason)
            assert native.completion_tokens == vllm.completion_tokens
            equal += 1
            continue
        first, second = pairs[apart][0].top
        assert first.logprob - second.logprob < NEAR_TIE[dtype], (native.output, vllm.output)
    print(f"{dtype}: {equal} of {len(requests)} answers equal")
    assert equal >= {"fp32": len(requests) - 1, "bf16": len(requests) // 2}[dtype]


def test_base_rows_beside_as_many_mixtures_as_there_are_slots(fp32: Engines) -> None:
    """vLLM 0.32 on a CPU gives rows without an adapter that of its last slot; none of ours may be without one."""
    names = fp32.bank.names
    mixtures = [Mixture(), *(Mixture.of({name: 1.0}) for name in names[:5])]
    for native, vllm in fp32.both(fp32.requests(mixtures, 12)):
        assert native.output == vllm.output
    for native, vllm in fp32.both(fp32.requests([Mixture()], 4)):
        assert native.output == vllm.output
