"""The ways that are compared. Each answers the same requests, and says how many seconds it took."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from benchmarks.engines.requests import shards
from conf.schema import GenerateConfig
from pipeline.cluster.node_cache import on_this_node
from pipeline.engine import Request
from pipeline.engine.backend import Backend
from pipeline.engine.vllm.backend import VllmBackend
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.from_config import job_settings
from pipeline.records import Completion
from pipeline.settings import JobSettings
from pipeline.stages.start_engine import start_backend

Way = Callable[[Sequence[Request]], float]
"""Seconds for some requests."""

_SHARDS_AT_ONCE = 2  # as a generating actor has them


def settings_of(config: GenerateConfig, rows: int, vllm: VllmSettings | None, base: bool = False) -> JobSettings:
    """Settings of an actor with so many rows. ``base``: no mixtures, so that vLLM runs without adapters."""
    settings = on_this_node(job_settings(config, "", ""))
    routing = replace(settings.routing, max_adapters=0) if base else settings.routing
    return replace(settings, engine=replace(settings.engine, batch_size=rows, vllm=vllm), routing=routing)


def started(settings: JobSettings, device: str, threads: int) -> tuple[Backend, float]:
    """A backend, and the seconds that its start took."""
    begun = time.perf_counter()
    backend = start_backend(settings, device, threads)
    return backend, time.perf_counter() - begun


def by_backend(backend: Backend, mixtures: int) -> Way:
    """Shard after shard, two at a time, as the generate stage does it. ``mixtures``: of a shard; 0: any number."""

    def run(asked: Sequence[Request]) -> float:
        cut = shards(asked, mixtures)
        begun = time.perf_counter()
        with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
            for shard, answers in zip(cut, pool.map(backend.answer, cut), strict=True):
                for request, answer in zip(shard, answers, strict=True):
                    assert isinstance(answer, Completion), answer
                    assert request.sampling is not None
                    assert answer.completion_tokens == request.sampling.max_new_tokens
        taken = time.perf_counter() - begun
        if isinstance(backend, VllmBackend):
            backend.forget_prefixes()  # it would know the prompts of the next turn
        return taken

    return run
