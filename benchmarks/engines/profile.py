"""Profile the native engine with the base model: share of each operation, speed of matrix products."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from pipeline.engine import Engine, Request

_SHOWN = 8  # operations; the others are summed
_REPEATS = 10


def shares(engine: Engine, requests: Sequence[Request]) -> dict[str, float]:
    """Return each operation's share of the time, largest first; calls cost more under the profiler."""
    assert requests[0].sampling is not None
    with torch.inference_mode(), profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in engine.generate(requests, requests[0].sampling):
            pass
    spent = sorted(((e.self_cpu_time_total, e.key) for e in found.key_averages()), reverse=True)
    total = sum(own for own, _ in spent)
    shown = {name: own / total for own, name in spent[:_SHOWN]}
    return shown | {"others": 1 - sum(shown.values())}


def only_prompts(requests: Sequence[Request]) -> list[Request]:
    """Return the same requests with one new token each."""
    return [
        replace(request, sampling=replace(request.sampling, max_new_tokens=1, min_new_tokens=1))
        for request in requests
        if request.sampling
    ]


def products(model: Any, tokens: Sequence[int]) -> dict[str, dict[str, float]]:
    """Measure GFLOP/s of a model's linear layers, without the head, with plain and with packed weights.

    Packed weights are in oneDNN's blocks, as a compiler arranges constants ahead of time (`torch.ops.mkldnn`).
    """
    weights = [m.weight for m in model.base_model.modules() if isinstance(m, torch.nn.Linear) and m.bias is None]
    found = {}
    for count in tokens:
        by_width = {w.shape[1]: torch.randn(count, w.shape[1], dtype=w.dtype) for w in weights}
        inputs = [by_width[w.shape[1]] for w in weights]
        packed = [torch.ops.mkldnn._reorder_linear_weight(w.detach(), count) for w in weights]
        work = sum(2e-9 * count * w.numel() for w in weights)
        found[str(count)] = {
            "plain": work / _seconds(_each, linear, inputs, weights),
            "packed": work / _seconds(_each, _packed_linear, inputs, packed),
        }
    return found


def _each(product: Callable[..., Any], inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> None:
    for x, weight in zip(inputs, weights, strict=True):
        product(x, weight)


def _packed_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return found


def attention(config: Any, tokens: Sequence[int], dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Measure GFLOP/s of causal attention over a prompt in one layer: PyTorch's kernel, scores rounded to ``dtype``.

    Only the work of the lower triangle counts.
    """
    kept, dim = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    each, found = config.num_attention_heads // kept, {}
    for count in tokens:
        query = torch.randn(kept, each, count, dim, dtype=dtype)
        key, value = (torch.randn(kept, count, dim, dtype=dtype) for _ in range(2))
        hidden = torch.full((count, count), float("-inf")).triu(1)
        work = 2e-9 * kept * each * count**2 * dim

        found[str(count)] = {
            "kernel": work / _seconds(_kernel, query, key, value),
            "rounded_scores": work / _seconds(_rounded, query, key, value, hidden),
        }
    return found


def _kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    keys, values = (held.unsqueeze(1).expand(-1, query.shape[1], -1, -1) for held in (key, value))
    scaled_dot_product_attention(query, keys, values, is_causal=True)


def _rounded(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor) -> None:
    scores = torch.bmm(query.flatten(1, 2), key.transpose(1, 2)).view(query.shape[0], -1, *hidden.shape)
    shares = scores.float().mul_(query.shape[-1] ** -0.5).add_(hidden).softmax(-1).to(query.dtype)
    torch.bmm(shares.flatten(1, 2), value)


@torch.inference_mode()
def _seconds(call: Callable[..., None], *given: Any) -> float:
    """Return the median seconds of a call, after a warm-up call."""
    taken = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        call(*given)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])
