"""Mixtures through vLLM against explicitly merged weights, and against the native engine.

`python -m benchmarks.engines --cases exact` writes the same figures, and more of them, to a result file.
"""

from collections.abc import Callable

import pytest
import torch

from pipeline.models import load_model
from pipeline.records import Mixture
from tests.engine.reference import merged
from tests.vllm.engines import Engines, mixtures_of, smollm
from tests.vllm.measures import agreement, off_merged, scored

pytestmark = pytest.mark.vllm

# bf16 has 8 bits: two logits near 16 that are rounded apart differ by 1/8.
NEAR_TIE = {"fp32": 1e-3, "bf16": 0.25}


def test_fp32_logprobs_equal_those_of_merged_weights(fp32: Engines) -> None:
    requests = fp32.requests(mixtures_of(fp32.bank), 10, logprobs=5)
    worst = off_merged(load_model(smollm(), "fp32"), fp32.bank, fp32.vllm, requests)
    print(f"largest difference in fp32: {worst:.1e}")
    assert worst < 1e-4


def test_bf16_logprobs_are_as_near_to_exact_ones_as_bf16_itself(engines: Callable[[str], Engines]) -> None:
    """As those of weights merged in bf16, and as those of the base model, which no adapter touches."""
    bf16 = engines("bf16")
    exact, half = load_model(smollm(), "fp32"), load_model(smollm(), "bf16")

    def off(mixtures: list[Mixture], count: int) -> tuple[float, float]:
        """Mean differences of the tokens of some answers: of vLLM, and of transformers with merged bf16 weights."""
        ours, theirs = [], []
        for one in scored(bf16.vllm, bf16.requests(mixtures, count, logprobs=0)):
            expected = one.of_tokens(merged(exact, bf16.bank, one.request.mixture))
            ours.append(one.logprobs - expected)
            theirs.append(one.of_tokens(merged(half, bf16.bank, one.request.mixture)) - expected)
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
    equal, margins = agreement(both, requests)
    print(f"{dtype}: {equal} of {len(requests)} answers equal")
    assert max(margins, default=0.0) < NEAR_TIE[dtype]
    assert equal >= {"fp32": len(requests) - 1, "bf16": len(requests) // 2}[dtype]
