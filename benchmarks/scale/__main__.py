"""Efficiency over nodes: `python -m benchmarks.scale [--nodes 1 2 4 8] [--records 1280]`.

Ray's own `cluster_utils` start the nodes on this machine, each with one fake GPU; the engines sleep as long as the real
one was measured to take (`sleeping.py`), so that two cores are enough for eight of them. Everything else is the real
job: plan, read, shuffle, commit. The records grow with the nodes. Each size of the cluster is a process of its own,
which runs a small job first, as the workers that read and write are kept between jobs; cases that the results hold
already are skipped.
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
from pipeline.evaluation.results import write_results

_RESULTS = Path("benchmarks/results/cluster-scale.json")


def main() -> None:
    """Run what is missing, and write the results after each case."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--records", type=int, default=1280, help="for each node")
    parser.add_argument("--only", default="", help="cases whose name holds this text")
    parser.add_argument("--output", type=Path, default=_RESULTS)
    parser.add_argument("--kit", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--largest", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.kit:
        _measure(args.nodes[0], args)
        return
    with tempfile.TemporaryDirectory() as temporary:
        kit = Path(temporary) / "kit"
        Kit.make(kit)
        for nodes in dict.fromkeys([min(args.nodes), max(args.nodes), *args.nodes]):
            words = ["--kit", str(kit), "--nodes", str(nodes), "--largest", str(max(args.nodes))]
            words += ["--records", str(args.records), "--only", args.only]
            # A token of its own: else a token file of the user decides whether nodes and driver find each other.
            own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_BACKEND_LOG_LEVEL": "fatal"}
            command = [sys.executable, "-m", "benchmarks.scale", *words, "--output", str(args.output)]
            subprocess.run(command, env=os.environ | own, check=True)


def cases(nodes: int, largest: int) -> list[Case]:
    """Even and skewed; 1 to 1,000 mixtures on one node and on the most; there also a slow node and a lost one."""
    found = [Case(nodes), Case(nodes, hot=0.9)]
    if nodes in (1, largest):
        found += [Case(nodes, 1), Case(nodes, 100), Case(nodes, 1000)]
    if nodes == largest > 1:
        found += [Case(nodes, 1000, 0.9), Case(nodes, slow=2.0), Case(nodes, lose=True)]
    return found


def _efficiency(case: dict[str, Any], done: dict[str, Any]) -> dict[str, float]:
    alone = done.get(Case(1, case["mixtures"], case["hot"]).name) or done.get(Case(1, hot=case["hot"]).name)
    return against(alone, case) if alone else {}


def _measure(count: int, args: argparse.Namespace) -> None:
    """The missing cases of one size of the cluster."""
    kit, records, output = args.kit, args.records, args.output
    about = {"records_a_node": records, "shard_records": SHARD}
    results = json.loads(output.read_text()) if output.exists() else {"config": about, "cases": {}}
    if results["config"] != about:
        raise SystemExit(f"{output} holds runs with {results['config']}; give another --output")
    done: dict[str, Any] = results["cases"]
    missing = [case for case in cases(count, args.largest) if case.name not in done and args.only in case.name]
    if not missing:
        return
    made, nodes = Kit(kit / "model", kit / "bank", kit / "router"), start(count)
    try:
        for case in [None, *missing]:
            with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
                if case is None:
                    run(Case(count), made, Path(temporary), 2 * SHARD * count, nodes)
                    continue
                done[case.name] = run(case, made, Path(temporary), records * count, nodes)
            figures = {name: found | _efficiency(found, done) for name, found in done.items()}
            write_results(output, {"config": about, "cases": figures})
            print(case.name, json.dumps(figures[case.name]), flush=True)
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
