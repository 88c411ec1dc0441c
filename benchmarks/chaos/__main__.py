"""Kill real jobs at seeded moments and count every line: `python -m benchmarks.chaos [--runs 100] [--seed N]`.

Each seed draws an input, three to five kills (a worker process of any stage, a node, the driver) and their moments. The
job is restarted until it finishes; then each line of the input must be in the data or the dead letters, once. Readers
open the output during the run, and must be able to read on after a window was finished. Records are written to
`benchmarks/results/chaos.json` after each run; with ``--store s3``, whose server is killed too, to
`chaos-s3.json`. Seeds with a record are skipped. The exit code is 1 if a run failed. To use more cores, start several
commands with ``--share 0/2``, ``--share 1/2``: each has its own cluster.
"""

import argparse
import fcntl
import json
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.chaos.cluster import Cluster
from benchmarks.chaos.kills import MIN_KILLS
from benchmarks.chaos.runs import SHORT, Kit, Run, Size
from benchmarks.chaos.stores import STORES, Store
from pipeline.evaluation.results import write_results

_HASTES = (1, 4, 16)  # a seed whose job finishes before it was killed often enough is retried with more haste
_PER_CLUSTER = 10  # runs until the cluster is replaced, so that no run depends on the leftovers of many others


def main() -> int:
    """Run the seeds without a record; return the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.chaos")
    parser.add_argument("--runs", type=int, default=100, help="seeds 0 to N-1 without those recorded")
    parser.add_argument("--seed", type=int, help="only this seed, recorded or not")
    parser.add_argument("--haste", type=int, help="with --seed: the haste in its record, to reproduce it")
    parser.add_argument(
        "--short", action="store_true", help="use the short form of tests/chaos, to reproduce its seeds"
    )
    parser.add_argument("--max-runs", type=int, help="stop after this number of runs")
    parser.add_argument("--share", default="0/1", help="K/N: only seeds with remainder K when divided by N")
    parser.add_argument("--store", choices=STORES, default="disk", help="where the runs read and write")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results/chaos[-s3][-short].json")
    parser.add_argument("--work", type=Path, default=Path("out/chaos"), help="folders of failed runs stay here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    case = "-".join(["chaos", *(["s3"] if args.store != "disk" else []), *(["short"] if args.short else [])])
    results = args.results or Path("benchmarks/results", f"{case}.json")
    size = SHORT if args.short else Size()
    known = _known(results, asdict(size))
    wanted = [args.seed] if args.seed is not None else [seed for seed in range(args.runs) if seed not in known]
    remainder, divisor = map(int, args.share.split("/"))
    wanted = [seed for seed in wanted if seed % divisor == remainder or args.seed is not None][: args.max_runs]
    with tempfile.TemporaryDirectory() as folder, STORES[args.store]() as store:
        kit = Kit.make(Path(folder))
        for start in range(0, len(wanted), _PER_CLUSTER):
            with Cluster() as cluster:
                for seed in wanted[start : start + _PER_CLUSTER]:
                    record = _run(seed, cluster, kit, args.work.resolve(), size, store, args.haste)
                    with _locked(args.work):  # other shares write to the same file
                        known = _known(results, asdict(size)) | {seed: record}
                        _write(results, known, asdict(size))
    failed = sorted(seed for seed, record in known.items() if not record["exact"])
    if failed:
        print(
            f"failed: seeds {', '.join(map(str, failed))}; retry with --seed N, logs are in {args.work}",
            file=sys.stderr,
        )
    early = sorted(set(wanted) - _conclusive(known).keys() - set(failed))
    if early:
        print(f"finished before kill {MIN_KILLS}: seeds {', '.join(map(str, early))}; run again", file=sys.stderr)
    return 1 if failed or early else 0


def _run(
    seed: int, cluster: Cluster, kit: Kit, work: Path, size: Size, store: Store, haste: int | None
) -> dict[str, Any]:
    folder = work / f"seed-{seed:04d}"
    try:
        for haste_of_try in [haste] if haste else _HASTES:
            record = Run(seed, cluster, kit, folder, size, store, haste_of_try).run()
            if not record["exact"] or len(record["kills"]) >= MIN_KILLS:
                break
    except Exception as error:  # a run that cannot be counted failed; the others continue
        traceback.print_exc()
        record = {"seed": seed, "exact": False, "error": f"{type(error).__name__}: {error}"}
    if record["exact"]:
        shutil.rmtree(folder)
    print(_line(record), flush=True)
    return record


def _line(record: dict[str, Any]) -> str:
    if "error" in record:
        return f"seed {record['seed']:4}  FAILED  {record['error']}"
    kinds = " ".join(kill["kind"] for kill in record["kills"])
    return (
        f"seed {record['seed']:4}  {'exact ' if record['exact'] else 'FAILED'}  {record['lines']:3} lines"
        f"  lost {record['lost']}  doubled {record['doubled']}  orphans {record['orphans']}"
        f"  reader errors {len(record['reader_errors'])} of {record['reads']}"
        f"  {len(record['exits'])} starts  {record['seconds']:5.1f} s  {kinds}"
    )


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    work.mkdir(parents=True, exist_ok=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _known(path: Path, size: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Return the records by seed; exits if they are of runs of another size."""
    values = json.loads(path.read_text()) if path.exists() else {"config": None, "runs": []}
    if values["config"] not in (None, size):
        sys.exit(f"{path}: holds runs of another size; give another --results, or remove it")
    return _conclusive({r["seed"]: r for r in values["runs"]})


def _conclusive(records: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Drop exact runs with too few kills, which prove nothing."""
    return {seed: r for seed, r in records.items() if not r["exact"] or len(r["kills"]) >= MIN_KILLS}


def _write(path: Path, known: dict[int, dict[str, Any]], size: dict[str, Any]) -> None:
    records = [known[seed] for seed in sorted(known)]
    counted = [record for record in records if "error" not in record]
    kills = Counter(kill["kind"] for record in counted for kill in record["kills"])
    sums = {key: sum(r[key] for r in counted) for key in ("lines", "lost", "doubled", "misplaced", "orphans")}
    figures = {
        "runs": len(records),
        "failed": sum(not record["exact"] for record in records),
        **sums,
        "reads": sum(record["reads"] for record in counted),
        "reader_errors": sum(len(record["reader_errors"]) for record in counted),
        "starts": sum(len(record["exits"]) for record in counted),
        "kills": kills.total(),
        "kills_by_kind": dict(kills.most_common()),
        "seconds": round(sum(record["seconds"] for record in counted), 1),
    }
    write_results(path, {"case": "chaos", "config": size, "figures": figures, "runs": records})


if __name__ == "__main__":
    sys.exit(main())
