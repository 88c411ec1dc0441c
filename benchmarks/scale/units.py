"""Measure the cost of one record, shard and window without the engine: `python -m benchmarks.scale.units`.

`docs/scale.md` estimates the needs of a billion records from these figures. They are measured with the demo's records
and router, and with SeaweedFS (S3) on this machine.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import orjson
import pyarrow as pa

from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.evaluation.results import write_results
from pipeline.from_config import job_settings
from pipeline.job.preflight import check_models
from pipeline.records import DATA, Mixture
from pipeline.stages.regroup import cut_shards, pack
from pipeline.stages.route import RouteRecords
from pipeline.stages.shard_plan import ShardLimits
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard, encode_shard
from pipeline.storage.commit.window import commit_shard
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split, staged_table
from pipeline.storage.store.objects import list_names, put
from tests.s3.weed import BUCKET, Weed

_ROWS, _SHARD = 1_000_000, 512
_BLOCK, _TOKENS = 65_536, 50  # records that are regrouped together, and the tokens of a prompt
_COPIES = 20  # of the demo's 104 records
_COMMITS = 40


def main() -> None:
    """Measure and write `benchmarks/results/scale-units.json`."""
    figures = {"record": of_records(), "regroup": of_regrouping(), "store": of_store()}
    write_results(Path("benchmarks/results/scale-units.json"), figures)
    print(orjson.dumps(figures, option=orjson.OPT_INDENT_2).decode())


def of_records() -> dict[str, Any]:
    """Measure the bytes of a record between stages, and the records per second that one process reads and routes."""
    config = load_settings("generate", ["engine=native"], GenerateConfig)
    settings = job_settings(config, "demo/records.jsonl", "unused")
    plan = plan_input(settings.input, settings.window_records, Columns())
    context = check_models(settings).context
    route = RouteRecords(settings, context)
    [split] = plan.splits(0)
    start = time.perf_counter()
    staged = [staged_table(list(read_split(settings.input, split, Columns(), {})), plan.passed) for _ in range(_COPIES)]
    read = time.perf_counter()
    routed = pa.concat_tables(route(table) for table in staged)
    done = time.perf_counter()
    rows = routed.num_rows
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "in.jsonl"
        lines = Path(settings.input).read_bytes().splitlines()
        rewritten = (orjson.loads(line) | {"id": f"{copy}-{n}"} for copy in range(200) for n, line in enumerate(lines))
        path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rewritten))
        planning = time.perf_counter()
        planned = plan_input(str(path), settings.window_records, Columns()).rows / (time.perf_counter() - planning)
    return {
        "planned_per_second": planned,
        "input_bytes": plan.files[0].size / plan.rows,
        "prompt_tokens": sum(map(len, routed["tokens"].to_pylist())) / rows,
        "routed_bytes": routed.nbytes / rows,
        "packed_bytes": len(pack(routed)["records"][0].as_py()) / rows,
        "read_per_second": rows / (read - start),
        "routed_per_second": rows / (done - read),
    }


def of_regrouping() -> dict[str, Any]:
    """Measure seconds and bytes of cutting one block of records into shards, by its number of distinct mixtures."""
    found: dict[str, Any] = {}
    for distinct in (26, 1000, 100_000):
        chance = np.random.default_rng(0)
        keys = [Mixture.of({f"a{n % 97}": 0.5, f"b{n // 97}": 0.5}).key for n in range(distinct)]
        tokens = chance.integers(0, 50_000, (_BLOCK, _TOKENS)).tolist()
        mixtures = [keys[code] for code in chance.integers(0, distinct, _BLOCK)]
        block = pa.table({"tokens": pa.array(tokens, pa.list_(pa.int32())), "mixture": mixtures})
        start = time.perf_counter()
        shards = [pack(shard).nbytes for shard in cut_shards(block, ShardLimits(_SHARD, 64))]
        seconds = time.perf_counter() - start
        found[str(distinct)] = {"records": _BLOCK, "seconds": seconds, "shards": len(shards), "bytes": sum(shards)}
    return found


def of_store() -> dict[str, Any]:
    """Measure seconds of a commit and of a listing on S3, and bytes of a shard's marker."""
    with tempfile.TemporaryDirectory() as temporary:
        weed = Weed(Path(temporary))
        try:
            with mock.patch.dict(os.environ, weed.environment):
                return _commits() | {"listing_seconds": {str(count): _listing(count) for count in (1000, 4000)}}
        finally:
            weed.kill()


def _commits() -> dict[str, Any]:
    store = MarkerStore(f"s3://{BUCKET}/commits")
    rows = np.random.default_rng(0).permutation(_ROWS)[:_SHARD]
    data = answers(_SHARD)
    empty = pa.table({})
    seconds = []
    for number in range(_COMMITS):
        shard = Shard(f"w000000-a-{number:06d}", None, None, rows, np.empty(0, np.int64), count_rows(data, empty))
        start = time.perf_counter()
        commit_shard(store, shard, data, empty)
        seconds.append(time.perf_counter() - start)
    return {"commit_seconds": statistics.median(seconds), "marker_bytes": len(encode_shard(shard))}


def answers(rows: int) -> pa.Table:
    """Return the data of a shard, with answers of 40 words."""
    row = {"id": "0123456789", "output": "word " * 40, "finish_reason": "stop", "prompt_tokens": 100}
    more = {"completion_tokens": 48, "adapters": ["a"], "weights": [1.0], "mixture": "a:1.0"}
    return pa.Table.from_pylist(
        [row | more | {"route_score": 0.5, "route_confidence": 0.5, "fallback": False}] * rows, schema=DATA
    )


def _listing(count: int) -> float:
    fs = MarkerStore(f"s3://{BUCKET}/list-{count}").fs
    folder = f"{BUCKET}/list-{count}/_commits"
    for number in range(count):
        put(fs, f"{folder}/w000000-a-{number:06d}.json", b"{}")
    start = time.perf_counter()
    assert len(list_names(fs, folder, "w000000-")) == count
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
