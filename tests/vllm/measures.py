"""How far what vLLM answers is from exact log probabilities, and from what the native engine answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.adapters import AdapterBank
from pipeline.engine import Request
from pipeline.engine.vllm.backend import VllmBackend
from pipeline.records import Completion
from tests.engine.reference import logits_of, merged
from tests.vllm.engines import Engines


@dataclass(frozen=True)
class Scored:
    """A request, the tokens of its answer, and the log probabilities [new tokens] that vLLM reported of them."""

    request: Request
    tokens: list[int]
    logprobs: torch.Tensor

    @property
    def all_tokens(self) -> list[int]:
        """Of prompt and answer."""
        return [*self.request.tokens, *self.tokens]

    def by(self, model: Any) -> torch.Tensor:
        """Log probabilities [new tokens x vocabulary] of the steps of the answer by a transformers model, in fp32."""
        logits = logits_of(model, self.all_tokens)
        return logits[len(self.request.tokens) - 1 : -1].float().log_softmax(1)

    def of_tokens(self, model: Any) -> torch.Tensor:
        """Those of the answer's own tokens [new tokens]."""
        return self.by(model).gather(1, torch.tensor(self.tokens).unsqueeze(1))[:, 0]


def scored(vllm: VllmBackend, requests: Sequence[Request]) -> list[Scored]:
    """Answers of vLLM to requests that ask for log probabilities."""
    return [_scored(request, answer) for request, answer in zip(requests, vllm.answer(requests), strict=True)]


def off_merged(model: Any, bank: AdapterBank, vllm: VllmBackend, requests: Sequence[Request]) -> float:
    """The largest difference from merged weights, over each token and the five most likely ones; equal in their order.

    ``requests``: with ``logprobs=5``.
    """
    worst = 0.0
    for request, answer in zip(requests, vllm.answer(requests), strict=True):
        one = _scored(request, answer)
        assert isinstance(answer, Completion)
        assert answer.logprobs
        expected = one.by(merged(model, bank, request.mixture))
        for step, token in zip(expected, answer.logprobs, strict=True):
            for found in (token, *token.top):
                worst = max(worst, abs(float(step[found.token_id]) - found.logprob))
            assert [found.token_id for found in token.top] == step.topk(5).indices.tolist()
    return worst


def agreement(engines: Engines, requests: Sequence[Request]) -> tuple[int, list[float]]:
    """How many answers of the two engines are equal, and of each other one by how much the native engine decided.

    That is the difference of the log probabilities of its two most likely tokens, where the answers part. ``requests``:
    with ``logprobs=2``.
    """
    margins = []
    for native, vllm in engines.both(list(requests)):
        assert native.logprobs
        assert vllm.logprobs
        pairs = list(zip(native.logprobs, vllm.logprobs, strict=False))
        apart = next((place for place, (a, b) in enumerate(pairs) if a.token_id != b.token_id), None)
        if apart is None:
            assert (native.output, native.finish_reason) == (vllm.output, vllm.finish_reason)
            assert native.completion_tokens == vllm.completion_tokens
            continue
        first, second = pairs[apart][0].top
        margins.append(first.logprob - second.logprob)
    return len(requests) - len(margins), margins


def _scored(request: Request, answer: Any) -> Scored:
    assert isinstance(answer, Completion), answer
    assert answer.logprobs
    return Scored(
        request,
        [token.token_id for token in answer.logprobs],
        torch.tensor([token.logprob for token in answer.logprobs]),
    )
