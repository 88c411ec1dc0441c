"""Decode steps of several ways in turn, step by step: what the machine does meanwhile, it does to all of them."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks.engine.measure import synchronise
from benchmarks.engine.workloads import Workload
from pipeline.engine import Engine, Sampling
from pipeline.engine.core.session import Session
from pipeline.records import Mixture

Step = Callable[[], None]
"""One decode step of a batch whose prompts have run."""

_FIRST = 3  # steps that do not count: caches of the processor, buffers, the choice of a form


def engine_steps(engine: Engine, asked: Workload, mixtures: Sequence[Mixture]) -> Step:
    """Steps of this engine; all requests must fit its rows."""
    session = Session(engine, Sampling())
    for request in asked.with_mixtures(mixtures).requests:
        assert session.add(request) is None
    running = session.scheduler.running
    while len(running) < len(asked.requests) or not all(row.new_tokens for row in running):
        session.step()

    def step() -> None:
        session.step()

    return step


def model_steps(model: Any, asked: Workload, adapter_names: Sequence[str] = ()) -> Step:
    """Steps of a transformers or PEFT model over prompts of one length, greedy, with transformers' own cache.

    ``adapter_names``: PEFT's, one for each row.
    """
    cache = DynamicCache()
    given: dict[str, Any] = {"adapter_names": list(adapter_names)} if adapter_names else {}

    @torch.inference_mode()
    def run(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **given).logits
        return logits[:, -1].float().argmax(1, keepdim=True)

    held = [run(torch.tensor([list(request.tokens) for request in asked.requests], device=model.device))]

    def step() -> None:
        held[0] = run(held[0])

    return step


def in_turn(ways: Mapping[str, Step], steps: int) -> dict[str, list[float]]:
    """Milliseconds of each way's steps. Each round has one step of every way, in an order of its own."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(_FIRST + steps):
        order = list(ways)
        random.Random(number).shuffle(order)
        for name in order:
            start = time.perf_counter()
            ways[name]()
            synchronise()
            if number >= _FIRST:
                taken[name].append(1000 * (time.perf_counter() - start))
    return taken
