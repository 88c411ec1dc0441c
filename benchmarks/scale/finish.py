"""Measure the cost of finishing a window: `python -m benchmarks.scale.finish`.

The window has a million rows in shards of 512, on a local disk and on SeaweedFS (S3) on this machine. Finishing reads
their markers, merges their files and writes a window marker, in a task beside the engines. At the end of the job the
driver removes what no window marker names. Results are written to `benchmarks/results/scale-finish.json`.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from benchmarks.pipeline.memory import MemoryWatch
from benchmarks.scale.units import answers
from pipeline.evaluation.results import write_results
from pipeline.heap import limit_arenas
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard, shard_prefix
from pipeline.storage.commit.orphans import sweep_finished_windows
from pipeline.storage.commit.window import commit_shard, finish_window
from tests.s3.weed import BUCKET, Weed

_ROWS, _SHARD, _FILE = 1_000_000, 512, 128 * 2**20


def main() -> None:
    """Measure both stores and write the results."""
    limit_arenas()  # as a driver does
    with tempfile.TemporaryDirectory() as temporary:
        figures = {"local disk": of_window(f"{temporary}/out")}
        weed = Weed(Path(temporary))
        try:
            with mock.patch.dict(os.environ, weed.environment):
                figures["S3"] = of_window(f"s3://{BUCKET}/out")
        finally:
            weed.kill()
    write_results(Path("benchmarks/results/scale-finish.json"), {"rows": _ROWS, "shard": _SHARD, "figures": figures})
    print(figures)


def of_window(url: str) -> dict[str, Any]:
    """Return the seconds, and this process's memory in MiB before and at its peak."""
    store, data, empty = MarkerStore(url), answers(_SHARD), pa.table({})
    order = np.random.default_rng(0).permutation(_ROWS)
    for number, start in enumerate(range(0, _ROWS, _SHARD)):
        rows = order[start : start + _SHARD]
        own = data.slice(0, len(rows))
        name = f"{shard_prefix(0)}a-{number:06d}"
        commit_shard(store, Shard(name, None, None, rows, np.empty(0, np.int64), count_rows(own, empty)), own, empty)
    with MemoryWatch(0.02) as before:
        time.sleep(0.1)
    with MemoryWatch(0.02) as memory:
        start_time = time.perf_counter()
        files = finish_window(store, 0, _ROWS, _FILE)
        finished = time.perf_counter()
        sweep_finished_windows(store)
        swept = time.perf_counter()
    assert files.counts.data == _ROWS
    return {
        "shards": number + 1,
        "seconds": finished - start_time,
        "sweep_seconds": swept - finished,
        "files": len(files.data),
        "process_mib": {"before": before.peaks["driver"], "most": memory.peaks["driver"]},
    }


if __name__ == "__main__":
    main()
