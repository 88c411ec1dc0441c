"""The requests: records of the demo's tasks with the mixtures of its router, and answers of one length."""

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, zip_longest

import pyarrow as pa
import pyarrow.parquet as pq

from conf.schema import GenerateConfig
from pipeline.cluster.node_cache import cache_for_engine
from pipeline.engine import Request, Sampling
from pipeline.from_config import job_settings
from pipeline.job.preflight import check_models
from pipeline.records import Mixture, Record
from pipeline.stages.route import RouteRecords
from pipeline.stages.shard_plan import ShardLimits, plan_shards
from pipeline.storage.input.read import staged_table

SUITE = "demo/data/suite-test.parquet"


def requests(config: GenerateConfig, count: int, new_tokens: int) -> list[Request]:
    """Return ``count`` requests, tasks in turn, each answered with exactly ``new_tokens`` tokens."""
    by_task: dict[str, list[str]] = {}
    for row in pq.read_table(SUITE, columns=["task", "prompt"]).to_pylist():
        by_task.setdefault(row["task"], []).append(row["prompt"])
    prompts = [prompt for rank in zip_longest(*by_task.values()) for prompt in rank if prompt is not None][:count]
    settings = cache_for_engine(job_settings(config, "", ""))
    context = check_models(settings).context
    records = [Record(row, str(row), prompt) for row, prompt in enumerate(prompts)]
    routed = RouteRecords(settings, context)(staged_table(records, pa.schema([])))
    sampling = Sampling(max_new_tokens=new_tokens, min_new_tokens=new_tokens)
    return [
        Request(row["id"], row["tokens"], Mixture.parse(row["mixture"]), sampling=sampling)
        for row in routed.to_pylist()
        if row["dead"] is None
    ]


def for_base(given: Sequence[Request]) -> list[Request]:
    """Return the same requests for the base model."""
    return [replace(request, mixture=Mixture()) for request in given]


def single(given: Sequence[Request]) -> list[Request]:
    """Return the same requests with only the adapter of the largest weight, for engines with one adapter per row."""
    return [replace(request, mixture=_largest(request.mixture)) for request in given]


def distinct(given: Sequence[Request], names: Sequence[str], count: int = 64) -> list[Request]:
    """Return the first ``count`` requests, each with another mixture of three adapters in equal parts."""
    groups = random.Random(0).sample(list(combinations(names, 3)), count)
    return [replace(r, mixture=Mixture.of(dict.fromkeys(g, 1 / 3))) for r, g in zip(given, groups, strict=False)]


def shards(given: Sequence[Request]) -> list[list[Request]]:
    """Divide the requests into shards as the planner does."""
    waiting: dict[str, list[Request]] = {}
    for request in given:
        waiting.setdefault(request.mixture.key, []).append(request)
    plan = plan_shards({key: len(own) for key, own in waiting.items()}, ShardLimits(512, 64))
    return [[waiting[key].pop() for key, count in shard for _ in range(count)] for shard in plan]


def _largest(mixture: Mixture) -> Mixture:
    if not mixture.adapters:
        return mixture
    name, _ = max(zip(mixture.adapters, mixture.weights, strict=True), key=lambda pair: (pair[1], pair[0]))
    return Mixture.of({name: 1.0})
