"""Accuracy of a run whose records have answers.

    python -m jobs.evaluate --run URL [--against URL] [--answer answer] [--by task] [--json FILE]

The answer and the group are passed-through columns of the run. With `--against`, a second run over the same records
is shown beside it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from conf.compose import PROJECT_DIR
from jobs._cli import OK, run_job
from pipeline.errors import UserError
from pipeline.evaluation import GroupAccuracy, accuracy_by_group
from pipeline.evaluation.results import write_results
from pipeline.storage import read_run
from pipeline.storage.run import RUN, RunFolder

Accuracies = dict[str, GroupAccuracy]


def main(argv: list[str]) -> int:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="jobs.evaluate", description="Accuracy of a run, by group.")
    parser.add_argument("--run", required=True, help="output of jobs.generate")
    parser.add_argument("--against", help="another run over the same records")
    parser.add_argument("--answer", default="answer", help="column of the right answer")
    parser.add_argument("--by", default="task", help="column to group by")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args(argv)
    runs = {url: _accuracies(url, args.answer, args.by) for url in [args.run, args.against] if url}
    _print_table(runs)
    if args.json:
        write_results(args.json, {"runs": {url: _as_json(url, found) for url, found in runs.items()}})
    return OK


def _accuracies(url: str, answer: str, by: str) -> Accuracies:
    dataset = read_run(url)
    if answer not in dataset.schema.names:
        raise UserError(
            f"evaluate: {url} has no column {answer!r}; it has {', '.join(dataset.schema.names)} (--answer)"
        )
    columns = ["output", answer, *([by] if by in dataset.schema.names else [])]
    rows = dataset.to_table(columns=columns).to_pylist()
    return accuracy_by_group((str(r.get(by, "all")), r["output"], r[answer]) for r in rows if r[answer] is not None)


def _mean(accuracies: Accuracies) -> float:
    return sum(group.accuracy for group in accuracies.values()) / max(1, len(accuracies))


def _print_table(runs: dict[str, Accuracies]) -> None:
    groups = sorted({group for accuracies in runs.values() for group in accuracies})
    width = max([len(group) for group in groups] + [10])
    print(f"{'exact match':{width}}  records  " + "  ".join(f"{url:>14}" for url in runs))
    for group in groups:
        found = [accuracies.get(group) for accuracies in runs.values()]
        cells = "  ".join(f"{a.accuracy:>14.1%}" if a else f"{'-':>14}" for a in found)
        print(f"{group:{width}}  {max(a.records for a in found if a):7d}  {cells}")
    print(f"{'mean':{width}}  {'':7}  " + "  ".join(f"{_mean(a):>14.1%}" for a in runs.values()))


def _as_json(url: str, accuracies: Accuracies) -> dict[str, Any]:
    run = RunFolder(url).read_json(RUN) or {}
    groups = {g: {"records": a.records, "right": a.right, "accuracy": a.accuracy} for g, a in accuracies.items()}
    run = json.loads(json.dumps(run).replace(f"{PROJECT_DIR}/", ""))  # result files name no folder of one machine
    about = {key: run.get(key) for key in ("config", "versions", "fingerprints", "counts", "timings")}
    return {"mean": _mean(accuracies), "groups": groups} | about


if __name__ == "__main__":
    run_job(main)
