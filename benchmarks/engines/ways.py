"""The compared ways to answer requests, each as a function that returns its seconds."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from benchmarks.engines.requests import shards
from conf.schema import GenerateConfig
from pipeline.cluster.node_cache import cache_for_engine
from pipeline.engine import Request
from pipeline.engine.backend import Backend
from pipeline.engine.vllm.backend import VllmBackend
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.from_config import job_settings
from pipeline.records import Completion
from pipeline.settings import JobSettings
from pipeline.stages.generate import start_engine

Way = Callable[[Sequence[Request]], float]
"""Answers requests; returns the seconds that it took."""

_SHARDS_AT_ONCE = 2  # as in a generating actor


def settings_of(config: GenerateConfig, rows: int, vllm: VllmSettings | None, base: bool = False) -> JobSettings:
    """Return the settings of an actor. ``base``: without mixtures, so that vLLM runs without adapters."""
    settings = cache_for_engine(job_settings(config, "", ""))
    routing = replace(settings.routing, max_adapters=0) if base else settings.routing
    return replace(settings, engine=replace(vllm or settings.engine, batch_size=rows), routing=routing)


def started(settings: JobSettings, device: str, threads: int) -> tuple[Backend, float]:
    """Start a backend; return it with the seconds of its start."""
    start = time.perf_counter()
    backend = start_engine(settings, device, threads)
    return backend, time.perf_counter() - start


def by_backend(backend: Backend) -> Way:
    """Answer shards, two at a time, as the generate stage does."""

    def run(requests: Sequence[Request]) -> float:
        cut = shards(requests)
        start = time.perf_counter()
        with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
            for shard, answers in zip(cut, pool.map(backend.answer, cut), strict=True):
                for request, answer in zip(shard, answers, strict=True):
                    assert isinstance(answer, Completion), answer
                    assert request.sampling is not None
                    assert answer.completion_tokens == request.sampling.max_new_tokens
        taken = time.perf_counter() - start
        if isinstance(backend, VllmBackend):
            backend.reset_prefix_cache()  # or it would reuse the prompts in the next turn
        return taken

    return run
