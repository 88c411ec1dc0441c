"""Measure the pipeline's own speed and memory: `python -m benchmarks.pipeline.scale [--records 1000000 10000000]`.

The records are short, router and tokenizer are the demo's, and the generator answers at once. Each size is one run in
its own driver process, on a local Ray, and takes minutes to hours; then the finished run is resumed. Figures of other
sizes stay in the result file, so that sizes may be measured one by one.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks.pipeline.memory import MemoryWatch
from benchmarks.pipeline.null import AnswersAtOnce
from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.evaluation.results import write_results
from pipeline.from_config import job_settings
from pipeline.job.generate import GenerateJob
from pipeline.pools import start_pools

_FILE_ROWS = 500_000


def main() -> None:
    """Measure each size, and write `benchmarks/results/pipeline-scale.json` after each."""
    parser = argparse.ArgumentParser(prog="benchmarks.pipeline.scale")
    parser.add_argument("--records", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--folder", type=Path, help="folder of input and output; kept")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/pipeline-scale.json"))
    parser.add_argument("overrides", nargs="*", help="config of jobs.generate: key=value")
    args = parser.parse_intermixed_args()
    config = load_settings("generate", ["engine=native", *args.overrides], GenerateConfig)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for records in args.records:
            if len(args.records) > 1:
                more = ["--records", str(records), "--folder", str(folder), "--output", str(args.output)]
                subprocess.run([sys.executable, "-m", "benchmarks.pipeline.scale", *more, *args.overrides], check=True)
                continue
            write_records(folder / f"in-{records}", records)
            figures = _measured(args.output, args.overrides)
            figures[str(records)] = measure(config, folder, records)
            write_results(args.output, {"overrides": args.overrides, "records": figures})
            print(orjson.dumps({str(records): figures[str(records)]}, option=orjson.OPT_INDENT_2).decode())


def _measured(path: Path, overrides: list[str]) -> dict[str, Any]:
    """Return the figures of other sizes with the same config from the result file."""
    before = orjson.loads(path.read_bytes()) if path.exists() else {}
    return dict(before["records"]) if before.get("overrides") == overrides else {}


def write_records(folder: Path, records: int) -> None:
    """Write JSONL files of prompts of 5 to 15 words; the same number of records gives the same files."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [
        word
        for line in Path("demo/records.jsonl").read_bytes().splitlines()
        for word in orjson.loads(line)["prompt"].split()
    ]
    rng = random.Random(0)
    for start in range(0, records, _FILE_ROWS):
        path = folder / f"{start:010d}.jsonl"
        rows = range(start, min(records, start + _FILE_ROWS))
        lines = (
            orjson.dumps({"id": f"{row:010d}", "prompt": " ".join(rng.choices(words, k=rng.randint(5, 15)))})
            for row in rows
        )
        if not path.exists():
            part = path.with_suffix(".part")
            with part.open("wb") as f:
                f.writelines(line + b"\n" for line in lines)
            part.rename(path)


def measure(config: GenerateConfig, folder: Path, records: int) -> dict[str, Any]:
    """Run a job, then resume the finished run."""
    settings = job_settings(config, str(folder / f"in-{records}"), str(folder / f"out-{records}"))
    start = time.perf_counter()
    with MemoryWatch() as memory:
        job = GenerateJob(settings, generator=AnswersAtOnce)
        job.prepare()
        planned = time.perf_counter()
        result = job.run(lambda: start_pools(config))
        ended = time.perf_counter()
    again = GenerateJob(settings)
    again.run(lambda: start_pools(config))
    resumed = time.perf_counter()
    out = Path(settings.output)
    kinds = {kind: sorted((out / kind).glob("*.parquet")) for kind in ("data", "dead")}
    return {
        "answered": result.counts.data,
        "dead": result.counts.dead,
        "incomplete": result.incomplete,
        "plan_seconds": planned - start,
        "run_seconds": ended - planned,
        "records_per_second": records / (ended - planned),
        "resume_seconds": resumed - ended,
        "peak_mib": memory.peaks,
        "files": {kind: len(paths) for kind, paths in kinds.items()},
        "largest_file_mib": max(path.stat().st_size for path in kinds["data"]) / 2**20,
        "markers": len(list((out / "_commits").glob("*.json"))),
    }


if __name__ == "__main__":
    main()
