"""What finishing a window costs its driver, while no engine works: `python -m benchmarks.scale.finish`.

A million rows in shards of 512, on a local disk and on SeaweedFS (S3) on this machine: their markers are read, their
files joined, a window marker is written, and all that it does not name is removed. Written to
`benchmarks/results/scale-finish.json`.
"""

import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa

from benchmarks.pipeline.memory import MemoryWatch
from benchmarks.scale.units import answers
from pipeline.engine.serving.heap import keep_no_freed_memory
from pipeline.evaluation.results import write_results
from pipeline.storage.commit.compaction import merge_files
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.log import CommitLog
from pipeline.storage.commit.markers import Shard, shard_prefix
from tests.s3.weed import BUCKET, Weed

_ROWS, _SHARD, _FILE = 1_000_000, 512, 128 * 2**20


def main() -> None:
    """Measure both and write them."""
    keep_no_freed_memory()  # as a driver does
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
    """Seconds, and MiB of this process's memory before and at most."""
    log, data, empty = CommitLog(url), answers(_SHARD), pa.table({})
    places = np.random.default_rng(0).permutation(_ROWS)
    for number, start in enumerate(range(0, _ROWS, _SHARD)):
        rows = places[start : start + _SHARD]
        own = data.slice(0, len(rows))
        name = f"{shard_prefix(0)}a-{number:06d}"
        log.commit(Shard(name, None, None, rows, np.empty(0, np.int64), count_rows(own, empty)), own, empty)
    with MemoryWatch(0.02) as before:
        time.sleep(0.1)
    with MemoryWatch(0.02) as memory:
        begun = time.perf_counter()
        files = log.finish_window(0, _ROWS, partial(merge_files, log, 0, _FILE))
        seconds = time.perf_counter() - begun
    assert files.counts.data == _ROWS
    held = {"before": before.peaks["driver"], "most": memory.peaks["driver"]}
    return {"shards": number + 1, "seconds": seconds, "files": len(files.data), "driver_mib": held}


if __name__ == "__main__":
    main()
