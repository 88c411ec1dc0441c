"""The full form: many inputs in portions, each in a process of its own; the same command goes on where it stopped.

    python -m tests.fuzz [--inputs 1000000] [--seed 1] [--portion 10000] [--at-most N] [--json FILE]

Exits 1 where an input did anything but be taken or refused with one line.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.evaluation.results import write_results
from tests.fuzz.portion import LONGEST, Portion
from tests.fuzz.targets import Target, targets

_PACKAGES = ("orjson", "safetensors", "fsspec")


def main() -> int:
    """Run all portions that the results file does not have yet."""
    parser = argparse.ArgumentParser(prog="tests.fuzz")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--portion", type=int, default=10_000)
    parser.add_argument("--at-most", type=int, help="portions of this command; the same command does the next ones")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/fuzz.json"))
    args = parser.parse_args()
    done = _done(args)
    with tempfile.TemporaryDirectory() as folder:
        kinds = targets(Path(folder))
    portions = {f"{p.target} {p.first}-{p.last}": p for target in kinds for p in _portions(target, args)}
    left = [key for key in portions if key not in done]
    for key in left[: args.at_most]:
        done[key] = _run(portions[key])
        print(key, json.dumps(done[key])[:1000], flush=True)
        _write(args, done, kinds)
    failed = sum(len(p["failures"]) for p in done.values())
    remaining = len(portions.keys() - done.keys())
    print(f"{remaining} portions left; {dict(_total(done.values()))}; failures: {failed} -> {args.json}")
    return 1 if failed else 0


def _done(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    if not args.json.is_file():
        return {}
    before = json.loads(args.json.read_text())
    return before["portions"] if (before["inputs"], before["seed"]) == (args.inputs, args.seed) else {}


def _portions(target: Target, args: argparse.Namespace) -> list[Portion]:
    inputs = args.inputs * target.share // 1000
    starts = range(0, inputs, args.portion)
    return [Portion(target.name, args.seed, start, min(start + args.portion, inputs)) for start in starts]


def _run(portion: Portion) -> dict[str, Any]:
    """What came of a portion; after a crash another process goes on behind the input that made it."""
    crashes: list[dict[str, Any]] = []
    while True:
        result, number, said = _process(portion)
        if result is not None:
            result["counts"] |= {"failed": len(crashes) + result["counts"].get("failed", 0)} if crashes else {}
            result["failures"] = crashes + result["failures"]
            return result
        crashes.append({"target": portion.target, "number": number, "error": said})
        portion = replace(portion, first=number + 1)


def _process(portion: Portion) -> tuple[dict[str, Any] | None, int, str]:
    """The result of a process, or the number of the input that ended it and its last words."""
    # In memory where there is such a folder: most of a small file's time is that of the disk.
    environment = os.environ | ({"TMPDIR": "/dev/shm"} if os.path.isdir("/dev/shm") else {})
    with tempfile.NamedTemporaryFile() as at:
        at.write(bytes(8))
        at.flush()
        command = [sys.executable, "-m", "tests.fuzz.portion", at.name]
        given = json.dumps(asdict(portion)).encode()
        ended = subprocess.run(command, input=given, capture_output=True, env=environment, check=False)
        if ended.returncode == 0:
            return json.loads(ended.stdout), 0, ""
        number = int.from_bytes(Path(at.name).read_bytes(), "little")
    return None, number, f"the process ended with {ended.returncode}: {ended.stderr.decode()[:1000]}"


def _write(args: argparse.Namespace, done: dict[str, dict[str, Any]], kinds: list[Target]) -> None:
    by_target = {}
    for target in kinds:
        found = [result for key, result in done.items() if key.rpartition(" ")[0] == target.name]
        if found:
            by_target[target.name] = dict(_total(found)) | {
                "seconds": round(sum(p["seconds"] for p in found), 1),
                "slowest_ms": max(p["slowest_ms"] for p in found),
                "peak_mb": max(p["peak_mb"] for p in found),
                "failures": [failure for p in found for failure in p["failures"]],
            }
    figures = {
        "command": f"python -m tests.fuzz --inputs {args.inputs} --seed {args.seed}",
        "inputs": args.inputs,
        "seed": args.seed,
        "longest_seconds_for_one_input": LONGEST,
        "total": dict(_total(done.values())),
        "seconds": round(sum(p["seconds"] for p in done.values()), 1),
        "targets": by_target,
        "more_versions": {name: version(name) for name in _PACKAGES},
        "portions": done,
    }
    write_results(args.json, figures)


def _total(results: Any) -> Counter[str]:
    return sum((Counter(p["counts"]) for p in results), Counter())


if __name__ == "__main__":
    sys.exit(main())
