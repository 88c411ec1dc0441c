"""Time decode steps of several variants in turn, so that changes in the machine's speed affect all of them."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.engine.measure import synchronise
from benchmarks.engine.workloads import Workload
from pipeline.engine import Engine, Sampling
from pipeline.records import Mixture

Step = Callable[[], None]
"""One decode step of a batch after its prefill."""

_WARM_UP = 3  # steps that fill caches and buffers and choose the form of the operator


def engine_steps(engine: Engine, requests: Workload, mixtures: Sequence[Mixture]) -> Step:
    """Return steps of this engine; all requests must fit its rows."""
    loop = engine.new_loop(Sampling())
    for request in requests.with_mixtures(mixtures).requests:
        assert loop.add(request) is None
    running = loop.scheduler.running
    while len(running) < len(requests.requests) or not all(seq.new_tokens for seq in running):
        loop.step()

    def step() -> None:
        loop.step()

    return step


def model_steps(model: Any, requests: Workload, adapter_names: Sequence[str] = ()) -> Step:
    """Return greedy steps of a transformers or PEFT model over prompts of one length, with transformers' own cache.

    ``adapter_names``: the adapter of each row, for PEFT.
    """
    cache = DynamicCache()
    options: dict[str, Any] = {"adapter_names": list(adapter_names)} if adapter_names else {}

    @torch.inference_mode()
    def run(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **options).logits
        likeliest: torch.Tensor = logits[:, -1].float().argmax(1, keepdim=True)
        return likeliest

    ids = [run(torch.tensor([list(request.tokens) for request in requests.requests], device=model.device))]

    def step() -> None:
        ids[0] = run(ids[0])

    return step


def in_turn(variants: Mapping[str, Step], steps: int) -> dict[str, list[float]]:
    """Return milliseconds of each variant's steps; each round has one step of every variant, in random order."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(_WARM_UP + steps):
        order = list(variants)
        random.Random(number).shuffle(order)
        for name in order:
            start = time.perf_counter()
            variants[name]()
            synchronise()
            if number >= _WARM_UP:
                taken[name].append(1000 * (time.perf_counter() - start))
    return taken
