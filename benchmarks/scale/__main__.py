"""Measure efficiency over nodes: `python -m benchmarks.scale [--nodes 1 2 4 8] [--records 1280] [--case windows]`.

Ray's `cluster_utils` starts the nodes on this machine, each with one fake GPU. The engines sleep for the measured time
of the real one (`sleeping.py`), so that eight of them run on two cores. Everything else is the real job: plan, read,
regroup, commit. The number of records grows with the nodes. Each size of the cluster has its own process, which first
runs a small job to start the workers that read and write. Cases with a result are skipped.

``--case windows`` is another benchmark, `windows.py`: each run of each of its variants has its own cluster and process.
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import ray

from benchmarks.chaos.runs import Kit
from benchmarks.scale.runs import SHARD, Case, against, run, start
from benchmarks.scale.windows import VARIANTS, WindowsCase, config_of, run_windows
from pipeline.evaluation.results import write_results

_RESULTS = {"nodes": "cluster-scale.json", "windows": "scale-windows.json"}


def main() -> None:
    """Run the cases without a result; write the results after each case."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale")
    parser.add_argument("--case", choices=_RESULTS, default="nodes")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8], help="with windows: the most of them")
    parser.add_argument("--records", type=int, default=1280, help="number of records per node")
    parser.add_argument("--only", default="", help="run only cases whose name contains this text")
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--window-seconds", type=float, default=75.0, help="work of all engines in a window")
    parser.add_argument("--engine-start", type=float, default=60.0, help="seconds")
    parser.add_argument("--speed", type=float, default=50.0, help="records/s of an engine, with windows")
    parser.add_argument("--poison", type=int, default=5, help="deadly rows of a window in that variant")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each variant of windows")
    parser.add_argument("--output", type=Path, help=f"default: benchmarks/results/{{{','.join(_RESULTS.values())}}}")
    parser.add_argument("--kit", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--largest", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.output = args.output or Path("benchmarks/results", _RESULTS[args.case])
    if args.kit:
        _measure(args.nodes[0], args) if args.case == "nodes" else _measure_windows(args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        kit = Path(temporary) / "kit"
        Kit.make(kit)
        if args.case == "windows":
            for variant in [v for v in VARIANTS if args.only in v for _ in range(args.repeats)]:
                _repeat_in_process(kit, "--only", variant)
            return
        for nodes in dict.fromkeys([min(args.nodes), max(args.nodes), *args.nodes]):
            _repeat_in_process(kit, "--nodes", str(nodes), "--largest", str(max(args.nodes)))


def _repeat_in_process(kit: Path, *more: str) -> None:
    """Run this command again in a process of its own, with more words."""
    # With its own token, the cluster does not depend on a token file of the user.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_BACKEND_LOG_LEVEL": "fatal"}
    command = [sys.executable, "-m", "benchmarks.scale", *sys.argv[1:], "--kit", str(kit), *more]
    subprocess.run(command, env=os.environ | token, check=True)


def cases(nodes: int, largest: int) -> list[Case]:
    """Return the cases of a cluster size: even and skewed mixtures.

    One node and the largest cluster also have 1 to 1,000 mixtures, and the largest one a slow and a lost node.
    """
    found = [Case(nodes), Case(nodes, hot=0.9)]
    if nodes in (1, largest):
        found += [Case(nodes, 1), Case(nodes, 100), Case(nodes, 1000)]
    if nodes == largest > 1:
        found += [Case(nodes, 1000, 0.9), Case(nodes, slow=2.0), Case(nodes, lose=True)]
    return found


def _efficiency(case: dict[str, Any], done: dict[str, Any]) -> dict[str, float]:
    alone = done.get(Case(1, case["mixtures"], case["hot"]).name) or done.get(Case(1, hot=case["hot"]).name)
    return against(alone, case) if alone else {}


def _measure_windows(args: argparse.Namespace) -> None:
    """Run one variant of the windows benchmark, unless it has enough runs."""
    case = WindowsCase(
        max(args.nodes), args.windows, args.window_seconds, args.engine_start, args.speed, poison=args.poison
    )
    results = _known(args.output, config_of(case))
    runs = results["cases"].setdefault(args.only, [])
    if len(runs) >= args.repeats:
        return
    folder, nodes = args.kit, start(case.nodes)
    try:
        with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
            kit = Kit(folder / "model", folder / "bank", folder / "router")
            runs.append(run_windows(case, args.only, kit, Path(temporary), nodes))
        write_results(args.output, results)
        shown = {key: value for key, value in runs[-1].items() if key not in ("engines", "log")}
        print(args.only, json.dumps(shown), flush=True)
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()


def _known(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the ``config`` and ``cases`` in the result file; exits if it holds runs of another config."""
    results = json.loads(path.read_text()) if path.exists() else {"config": config, "cases": {}}
    if results["config"] != config:
        raise SystemExit(f"{path} holds runs with {results['config']}; give another --output")
    return {key: results[key] for key in ("config", "cases")}


def _measure(count: int, args: argparse.Namespace) -> None:
    """Run the cases of one cluster size that have no result."""
    folder, records, output = args.kit, args.records, args.output
    config = {"records_a_node": records, "shard_records": SHARD}
    done: dict[str, Any] = _known(output, config)["cases"]
    missing = [case for case in cases(count, args.largest) if case.name not in done and args.only in case.name]
    if not missing:
        return
    kit, nodes = Kit(folder / "model", folder / "bank", folder / "router"), start(count)
    try:
        for case in [None, *missing]:
            with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
                if case is None:
                    run(Case(count), kit, Path(temporary), 2 * SHARD * count, nodes)
                    continue
                done[case.name] = run(case, kit, Path(temporary), records * count, nodes)
            figures = {name: found | _efficiency(found, done) for name, found in done.items()}
            write_results(output, {"config": config, "cases": figures})
            print(case.name, json.dumps(figures[case.name]), flush=True)
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
