"""What routing, shuffling and committing cost beside the engine: `python -m benchmarks.pipeline.overhead`.

The demo's records, several times over, by the bare engine and by the whole pipeline in turn: the engine in this
process, as an actor would run it, over requests that are routed and sorted by mixture already; the pipeline
on a local Ray with one generating actor of the same threads. What each needs to start is stated apart: loading for the
engine, a job over one record for the pipeline.

Each turn of the pipeline is compared with the mean of the engine's before and after it: a machine that becomes faster
or slower meanwhile does so for both. ``stolen`` is the share of its processors' time that the host gave to others.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import orjson
import pyarrow as pa

from conf import load_settings
from conf.schema import GenerateConfig
from jobs._settings import job_settings, pools_of
from pipeline.evaluation.results import write_results
from pipeline.stages.cluster import connect, size_pools
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.job import GenerateJob
from pipeline.stages.prepare import check_models
from pipeline.stages.route import RouteRecords
from pipeline.stages.settings import JobSettings
from pipeline.storage.plan import plan_input
from pipeline.storage.read import read_split, staged_table


def main() -> None:
    """Measure and write `benchmarks/results/pipeline-overhead.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.pipeline.overhead")
    parser.add_argument("--copies", type=int, default=5, help="of the demo's 104 records")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="config of jobs.generate: key=value")
    args = parser.parse_intermixed_args()
    overrides = ["generation.max_new_tokens=32", *args.overrides]
    config = load_settings("generate", overrides, GenerateConfig)
    engine: list[dict[str, float]] = []
    pipeline: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_copies(folder / "in.jsonl", args.copies)
        connect(config.cluster.address, config.cluster.cpus)
        for turn in range(args.repeats + 1):
            settings = job_settings(config, str(folder / "in.jsonl"), str(folder / f"out-{turn}"))
            engine.append(by_engine(settings, config))
            print("engine", engine[-1], flush=True)
            if turn < args.repeats:
                pipeline.append(by_pipeline(settings, config))
                print("pipeline", pipeline[-1], flush=True)
    speeds = [turn["tokens_per_second"] for turn in engine]
    around = [statistics.mean(pair) for pair in pairwise(speeds)]
    ratios = [turn["tokens_per_second"] / speed for turn, speed in zip(pipeline, around, strict=True)]
    figures = {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios), "each": ratios}
    config_said = {"copies": args.copies, "overrides": overrides}
    results = {"config": config_said, "pipeline_over_engine": figures, "engine": engine, "pipeline": pipeline}
    write_results(Path("benchmarks/results/pipeline-overhead.json"), results)
    print(figures)


def write_copies(path: Path, copies: int) -> None:
    """The demo's records with ids of their own."""
    rows = [orjson.loads(line) for line in Path("demo/records.jsonl").read_bytes().splitlines()]
    lines = [orjson.dumps(row | {"id": f"{row['id']}-{copy}"}) for copy in range(copies) for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")


def by_engine(settings: JobSettings, config: GenerateConfig) -> dict[str, float]:
    """The generating actor's class in this process, over records that are routed and sorted already."""
    start = time.perf_counter()
    plan = plan_input(settings.input, settings.window_records, settings.columns)
    records = [r for s in plan.splits(0) for r in read_split(settings.input, s, settings.columns, {})]
    context, _ = check_models(settings)
    routed = RouteRecords(settings, context)(staged_table(records, plan.passed)).sort_by("mixture")
    threads = size_pools(pools_of(config), config.cluster.autoscaling).threads
    actor = GenerateRecords(settings, "cpu", threads)
    loaded, stolen = time.perf_counter(), _stolen()
    tables = [routed.slice(at, settings.shard_records) for at in range(0, routed.num_rows, settings.shard_records)]
    answered = pa.concat_tables([actor(table) for table in tables])
    seconds, stolen = time.perf_counter() - loaded, _stolen() - stolen
    actor.backend.close()
    actor.backend.engine.lora.detach()
    tokens = sum(answered["completion_tokens"].to_pylist())
    return _figures(loaded - start, seconds, tokens, stolen / seconds)


def by_pipeline(settings: JobSettings, config: GenerateConfig) -> dict[str, float]:
    """The whole job, less what a job over one record takes: processes, libraries, the model."""

    def run(given: JobSettings) -> tuple[float, int]:
        start = time.perf_counter()
        pools = size_pools(pools_of(config), config.cluster.autoscaling)
        result = GenerateJob(given, lambda line: None).run(lambda: pools)
        return time.perf_counter() - start, result.tally.completion_tokens

    one = Path(settings.output).with_suffix(".one")
    one.with_suffix(".jsonl").write_bytes(Path(settings.input).read_bytes().splitlines(keepends=True)[0])
    starting, _ = run(replace(settings, input=str(one.with_suffix(".jsonl")), output=str(one)))
    stolen = _stolen()
    whole, tokens = run(settings)
    return _figures(starting, whole - starting, tokens, (_stolen() - stolen) / whole)


def _figures(starting: float, seconds: float, tokens: int, stolen: float) -> dict[str, float]:
    return {
        "start_seconds": starting,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "stolen": stolen,
    }


def _stolen() -> float:
    """Seconds of a processor that the host gave to others since the start of the machine, per processor."""
    ticks = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
    return ticks / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1)


if __name__ == "__main__":
    main()
