"""Compare a job in small windows with the same job in one: `python -m benchmarks.pipeline.windows [--turns 3]`.

Each turn runs the demo's command twice, in processes of their own, one after the other, first one and then the other.
An engine that started again for each window would show in ``generate_starts``, and in the time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.evaluation.results import write_results

RECORDS = "demo/records.jsonl"
WINDOWS = {"small windows": "window.records=26", "one window": "window.records=1000000"}


def main() -> None:
    """Measure and write `benchmarks/results/pipeline-windows.json`."""
    parser = argparse.ArgumentParser(prog="benchmarks.pipeline.windows")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/pipeline-windows.json"))
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in WINDOWS}
    for turn in range(args.turns):
        for name in sorted(WINDOWS, reverse=turn % 2 == 1):
            runs[name].append(run(WINDOWS[name]))
            print(name, runs[name][-1], flush=True)
    pairs = zip(*(runs[name] for name in WINDOWS), strict=True)
    ratios = [small["seconds"] / one["seconds"] for small, one in pairs]
    figures = {
        "small_over_one": {"median": statistics.median(ratios), "each": ratios},
        "generate_starts": [turn["generate_starts"] for turn in runs["small windows"]],
    }
    print(figures)
    write_results(args.output, {"records": RECORDS, "windows": WINDOWS, "figures": figures, "runs": runs})


def run(setting: str) -> dict[str, Any]:
    """Run the command once; return its wall time, the job's own time, and how often an engine started."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--input", RECORDS, "--output", folder, "--progress", "quiet", setting, "generation.max_new_tokens=32"]
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "jobs.generate", *words], check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - start
        values = json.loads((Path(folder) / "run.json").read_text())
        windows = len(list(Path(folder, "_commits").glob("window-*.json")))
    starts = values["timings"]["stages"]["generate start"]["calls"]
    return {"seconds": round(seconds, 2), "windows": windows, "generate_starts": starts}


if __name__ == "__main__":
    main()
