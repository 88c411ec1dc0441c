"""Measure the cost of routing, regrouping and committing beside the engine: `python -m benchmarks.pipeline.overhead`.

The bare engine and the whole pipeline answer test records of the demo's tasks, all different, in turn. The engine runs
in this process like in an actor, in one call over all requests, which are routed before. It gets them in the order of
the pipeline's shards, so that the difference is the cost of the pipeline; in the first turn also in the order of the
input, as a user without a pipeline would. The pipeline runs on a local Ray with one generating actor of the same
threads. Its time counts from when its engine is ready until the job ends: the rest of routing, the regrouping,
commits, merging the window's files, `run.json`. Start-up is reported separately.

Each turn of the pipeline is compared with the mean of the engine's turns before and after it, so that changes in the
machine's speed affect both. ``stolen`` is the share of the processors' time that the host gave to others.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.cluster.connect import connect
from pipeline.cluster.sizing import size_pools
from pipeline.engine.native.backend import NativeBackend
from pipeline.evaluation.results import write_results
from pipeline.from_config import job_settings
from pipeline.job.generate import GenerateJob
from pipeline.job.preflight import check_models
from pipeline.pools import pools_of
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.regroup import Regroup, unpack
from pipeline.stages.route import RouteRecords
from pipeline.stages.shard_plan import ShardLimits
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split, staged_table
from pipeline.telemetry.incidents import Incidents


def main() -> None:
    """Measure and write `benchmarks/results/pipeline-overhead.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.pipeline.overhead")
    parser.add_argument("--per-task", type=int, default=20, help="number of records of each of the 26 tasks")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="config of jobs.generate: key=value")
    args = parser.parse_intermixed_args()
    overrides = ["generation.max_new_tokens=32", *args.overrides]
    config = load_settings("generate", ["engine=native", *overrides], GenerateConfig)
    turns: dict[str, list[dict[str, float]]] = {"engine": [], "pipeline": [], "engine_input_order": []}

    def record(name: str, turn: dict[str, float]) -> None:
        turns[name].append(turn)
        print(name, turn, flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_records(folder / "in.jsonl", args.per_task)
        connect(config.cluster.address, config.cluster.cpus)
        for turn in range(args.repeats + 1):
            settings = job_settings(config, str(folder / "in.jsonl"), str(folder / f"out-{turn}"))
            record("engine", by_engine(settings, config, in_shards))
            if turn < args.repeats:
                record("pipeline", by_pipeline(settings, config))
            if turn == 0:
                record("engine_input_order", by_engine(settings, config, lambda routed, settings: routed))
    benchmark = {"per_task": args.per_task, "overrides": overrides}
    speeds = {name: [turn["tokens_per_second"] for turn in each] for name, each in turns.items()}
    around = [statistics.mean(pair) for pair in pairwise(speeds["engine"])]
    figures = {
        "pipeline_over_engine": _ratios(speeds["pipeline"], around),
        "pipeline_over_engine_in_input_order": _ratios(speeds["pipeline"][:1], speeds["engine_input_order"]),
    }
    write_results(Path("benchmarks/results/pipeline-overhead.json"), {"config": benchmark} | figures | turns)
    print(figures)


def write_records(path: Path, per_task: int) -> None:
    """Write the first test records of each task that the demo router knows, tasks in turn."""
    tasks = orjson.loads(Path("demo/router/router.json").read_bytes())["labels"]
    rows = pq.read_table("demo/data/suite-test.parquet", columns=["id", "task", "prompt"]).to_pylist()
    by_task = [[row for row in rows if row["task"] == task][:per_task] for task in tasks]
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for rank in zip(*by_task, strict=True) for row in rank))


def in_shards(routed: pa.Table, settings: JobSettings) -> pa.Table:
    """Sort routed records into the order of the pipeline's shards."""
    limits = ShardLimits(settings.shard_records, settings.shard_adapters)
    regroup = Regroup(limits, settings.block_records, 1, Incidents())
    shards = regroup(routed.append_column("window", pa.array([0] * routed.num_rows, pa.int32())))
    return pa.concat_tables(unpack(packed) for shard in shards for packed in shard["records"].to_pylist())


def by_engine(
    settings: JobSettings, config: GenerateConfig, order: Callable[[pa.Table, JobSettings], pa.Table]
) -> dict[str, float]:
    """Time the generating actor's class in this process, over records that are routed and sorted."""
    start = time.perf_counter()
    plan = plan_input(settings.input, settings.window_records, settings.columns)
    records = [r for s in plan.splits(0) for r in read_split(settings.input, s, settings.columns, {})]
    context = check_models(settings).context
    routed = order(RouteRecords(settings, context)(staged_table(records, plan.passed)), settings)
    threads = size_pools(pools_of(config), config.cluster.autoscaling).threads
    actor = GenerateRecords(settings, "cpu", threads)
    loaded, stolen = time.perf_counter(), _stolen()
    answered = actor(routed)
    seconds, stolen = time.perf_counter() - loaded, _stolen() - stolen
    actor.backend.close()
    assert isinstance(actor.backend, NativeBackend)
    actor.backend.engine.lora.detach()
    tokens = sum(answered["completion_tokens"].to_pylist())
    return _figures(loaded - start, seconds, tokens, stolen / seconds)


class Ready(GenerateRecords):
    """Writes the time at which its engine is ready to a file beside the output."""

    def _start(self, settings: JobSettings, device: str, threads: int) -> None:
        super()._start(settings, device, threads)
        Path(f"{settings.output}.ready").write_text(str(time.time()))


def by_pipeline(settings: JobSettings, config: GenerateConfig) -> dict[str, float]:
    """Time the whole job, from when its engine is ready."""
    start = time.time()
    pools = size_pools(pools_of(config), config.cluster.autoscaling)
    stolen = _stolen()
    result = GenerateJob(settings, lambda line: None, generator=Ready).run(lambda: pools)
    ended = time.time()
    ready = float(Path(f"{settings.output}.ready").read_text())
    stolen = (_stolen() - stolen) / (ended - start)
    return _figures(ready - start, ended - ready, result.counts.completion_tokens, stolen)


def _ratios(speeds: list[float], others: list[float]) -> dict[str, Any]:
    ratios = [speed / other for speed, other in zip(speeds, others, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "each": ratios}


def _figures(starting: float, seconds: float, tokens: int, stolen: float) -> dict[str, float]:
    return {
        "start_seconds": starting,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "stolen": stolen,
    }


def _stolen() -> float:
    """Return the seconds per processor that the host gave to others since the machine started."""
    ticks = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
    return ticks / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)


if __name__ == "__main__":
    main()
