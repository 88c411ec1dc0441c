"""Efficiency over nodes: `python -m benchmarks.scale [--nodes 1 2 4 8] [--records 320]`.

Ray's own `cluster_utils` start the nodes on this machine, each with one fake GPU; the engines sleep as long as the real
one was measured to take (`sleeping.py`), so that two cores are enough for eight of them. Everything else is the real
job: plan, read, shuffle, commit. The records grow with the nodes. Each case is a process of its own, and those that
the results hold already are skipped.
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
from pipeline.evaluation.results import write_results

from .runs import Case, against, run, start

_RESULTS = Path("benchmarks/results/cluster-scale.json")


def main() -> None:
    """Run what is missing, and write the results after each case."""
    parser = argparse.ArgumentParser(prog="benchmarks.scale")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--records", type=int, default=320, help="for each node")
    parser.add_argument("--output", type=Path, default=_RESULTS)
    parser.add_argument("--most", type=int, default=1000, help="cases in this call")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--kit", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        _one(json.loads(args.case), args.kit, args.records, args.output)
        return
    done: dict[str, Any] = json.loads(args.output.read_text())["cases"] if args.output.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        kit, found = Path(temporary) / "kit", Path(temporary) / "case.json"
        Kit.make(kit)
        for case in [case for case in cases(args.nodes) if case.name not in done][: args.most]:
            words = ["--case", json.dumps(vars(case)), "--kit", str(kit)]
            words += ["--records", str(args.records), "--output", str(found)]
            # A token of its own: else a token file of the user decides whether nodes and driver find each other.
            own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_BACKEND_LOG_LEVEL": "fatal"}
            subprocess.run([sys.executable, "-m", "benchmarks.scale", *words], env=os.environ | own, check=True)
            done[case.name] = json.loads(found.read_text())
            figures = {name: case | _efficiency(case, done) for name, case in done.items()}
            about = {"records_a_node": args.records, "shard_records": 32}
            write_results(args.output, {"config": about, "cases": figures})
            print(case.name, json.dumps(figures[case.name]), flush=True)


def cases(nodes: list[int]) -> list[Case]:
    """The smallest and the largest cluster, even and skewed, and a lost node; those between; 1 to 1,000 mixtures."""
    most = max(nodes)
    ends = [Case(count, hot=hot) for count in (min(nodes), most) for hot in (0.0, 0.9)]
    between = [Case(count, hot=hot) for count in nodes for hot in (0.0, 0.9)]
    varied = [Case(count, mixtures) for mixtures in (1000, 1) for count in (most, 1)]
    hurt = [Case(most, hot=0.9, lose=True), Case(most, slow=2.0)]
    found = [*ends, Case(most, lose=True), *between, *varied, *hurt, Case(most, 1000, 0.9), Case(most, 100)]
    return list(dict.fromkeys(found))


def _efficiency(case: dict[str, Any], done: dict[str, Any]) -> dict[str, float]:
    alone = done.get(Case(1, case["mixtures"], case["hot"]).name) or done.get(Case(1, hot=case["hot"]).name)
    return against(alone, case) if alone else {}


def _one(values: dict[str, Any], kit: Path, records: int, output: Path) -> None:
    case = Case(**values)
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:
        nodes = start(case.nodes)
        try:
            made = Kit(kit / "model", kit / "bank", kit / "router")
            output.write_text(json.dumps(run(case, made, Path(temporary), records * case.nodes, nodes)))
        finally:
            ray.shutdown()
            nodes.cluster.shutdown()


if __name__ == "__main__":
    main()
