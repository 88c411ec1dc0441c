"""What routing, shuffling and committing cost beside the engine: `python -m benchmarks.pipeline.overhead`.

The demo's records, several times over, by the bare engine and by the whole pipeline in turn. The engine in this
process, as an actor would run it, over all requests in one call, routed and sorted by mixture before. The pipeline on a
local Ray with one generating actor of the same threads, from the moment its engine is ready until the job has ended:
what is still routed then, the shuffle, commits, joining the window's files, `run.json`. What each needs to start is
stated apart.

Each turn of the pipeline is compared with the mean of the engine's before and after it: a machine that becomes faster
or slower meanwhile does so for both. ``stolen`` is the share of its processors' time that the host gave to others.
"""

import argparse
import os
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import orjson

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
    answered = actor(routed)
    seconds, stolen = time.perf_counter() - loaded, _stolen() - stolen
    actor.backend.close()
    actor.backend.engine.lora.detach()
    tokens = sum(answered["completion_tokens"].to_pylist())
    return _figures(loaded - start, seconds, tokens, stolen / seconds)


class Ready(GenerateRecords):
    """Says in a file beside the output when its engine is ready."""

    def _start(self, settings: JobSettings, device: str, threads: int) -> None:
        super()._start(settings, device, threads)
        Path(f"{settings.output}.ready").write_text(str(time.time()))


def by_pipeline(settings: JobSettings, config: GenerateConfig) -> dict[str, float]:
    """The whole job, from when its engine is ready."""
    start = time.time()
    pools = size_pools(pools_of(config), config.cluster.autoscaling)
    stolen = _stolen()
    result = GenerateJob(settings, lambda line: None, generator=Ready).run(lambda: pools)
    ended = time.time()
    ready = float(Path(f"{settings.output}.ready").read_text())
    stolen = (_stolen() - stolen) / (ended - start)
    return _figures(ready - start, ended - ready, result.tally.completion_tokens, stolen)


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
