"""Run one job on a cluster, and measure how its engines spend their time."""

import json
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from benchmarks.chaos.runs import Kit
from benchmarks.scale.sleeping import AssignsMixtures, Sleeps
from conf import load_settings
from conf.schema import GenerateConfig
from pipeline.cluster.connect import connect
from pipeline.cluster.resources import Pools, StageResources
from pipeline.cluster.sizing import size_pools
from pipeline.from_config import job_settings
from pipeline.job.generate import GenerateJob
from pipeline.settings import JobSettings
from pipeline.storage import read_dead, read_run

_SYSTEM = {
    "prestart_worker_first_driver": False,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 1000,
    "health_check_failure_threshold": 5,
}
SHARD = 32  # records
_STORE = 100 * 2**20  # bytes of a node's object store, on one machine


@dataclass(frozen=True)
class Case:
    """A job. ``hot``: share of rows with one mixture; ``slow``: slowdown of one node; ``lose``: a node is lost."""

    nodes: int
    mixtures: int = 26
    hot: float = 0.0
    slow: float = 1.0
    lose: bool = False

    @property
    def name(self) -> str:
        """Its key in the results."""
        kind = f"{self.hot:.0%} one mixture" if self.hot else "even"
        more = (f", one node {self.slow:g} times slower" if self.slow != 1 else "") + (", a node lost" * self.lose)
        return f"{self.nodes} nodes, {self.mixtures} mixtures, {kind}{more}"


class Nodes:
    """A head without a GPU, which routes records, and ``count`` nodes with one fake GPU each."""

    def __init__(self, count: int) -> None:
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 4, "object_store_memory": 2 * _STORE, "_system_config": _SYSTEM},
        )
        self.workers = [self.cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=_STORE) for _ in range(count)]
        self.cluster.wait_for_nodes()

    def lose_one(self) -> str:
        """Remove a node, as if its machine failed; return its id."""
        lost = self.workers.pop()
        self.cluster.remove_node(lost, allow_graceful=False)
        return str(lost.node_id)


def run(case: Case, kit: Kit, folder: Path, records: int, nodes: Nodes) -> dict[str, Any]:
    """Run the job of a case over ``records`` rows, on the connected cluster ``nodes``."""
    write_input(folder / "in.jsonl", records)
    scale = {"mixtures": case.mixtures, "hot": case.hot, "slow": case.slow}
    settings = job_settings_of(kit, folder, scale, f"shuffle.shard_records={SHARD}")
    job = GenerateJob(settings, lambda line: None, generator=Sleeps, router=AssignsMixtures)
    job.prepare()
    start_time = time.time()
    watch = CommitWatch(
        folder / "out", int(0.3 * records / settings.shard_records), nodes.lose_one if case.lose else None
    )
    with watch:
        result = job.run(pools)
    ended = time.time()
    engines = _engines(folder / "trace")
    return {
        **asdict(case),
        "records": records,
        **counted(str(folder / "out"), records),
        "incomplete": result.incomplete,
        "job_seconds": ended - start_time,
        "first_commit_seconds": (watch.first or ended) - start_time,
        "node_lost_at_seconds": None if watch.struck is None else watch.struck - start_time,
        **_used(engines, watch.last or ended, start_time),
    }


def start(nodes: int) -> Nodes:
    """Start a cluster and connect this process to it."""
    started = Nodes(nodes)
    connect(started.cluster.address, 0)
    return started


def pools() -> Pools:
    """Return pools with one generating actor per GPU."""
    return size_pools(
        Pools(
            read=StageResources(0.25),
            route=StageResources(0.5),
            generate=StageResources(1.0, min_actors=0, max_actors=0),
            write=StageResources(1.0),  # one writing process per node, as their starts share two cores here
            threads=1,
        )
    )


def write_input(path: Path, records: int) -> None:
    """Write rows that differ only in their id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"id": f"r{row}", "prompt": "red1 tall2"}) + "\n" for row in range(records)))


def job_settings_of(kit: Kit, folder: Path, scale: dict[str, Any], *more: str) -> JobSettings:
    """Return the settings of a job; ``scale``: for its actors (`sleeping.py`), which write into ``folder`` / trace."""
    (folder / "trace").mkdir()
    overrides = [
        *("model=custom", f"model.path={kit.model}", "model.dtype=fp32", "bank=custom", f"bank.path={kit.bank}"),
        *("router=custom", f"router.path={kit.router}", "generation.max_new_tokens=80"),
        *more,
    ]
    config = load_settings("generate", ["engine=native", *overrides], GenerateConfig)
    settings = job_settings(config, str(folder / "in.jsonl"), str(folder / "out"))
    return replace(settings, config={"scale": scale | {"adapters": 100, "trace": str(folder / "trace")}})


class CommitWatch:
    """Record the times at which the first and the last shard were committed.

    ``strike`` is called once, when ``shards`` are committed.
    """

    def __init__(self, output: Path, shards: int, strike: Callable[[], Any] | None) -> None:
        self.first: float | None = None
        self.last: float | None = None
        self.struck: float | None = None
        self._data, self._shards, self._strike = output / "data", shards, strike
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "CommitWatch":
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = 0
        while not self._end.wait(0.1):
            found = sum(1 for path in self._data.glob("w*.parquet") if "merged" not in path.name)
            now = time.time()
            if found > seen:
                self.first, self.last, seen = self.first or now, now, found
            if self._strike and self.struck is None and found >= self._shards:
                self.struck = now
                self._strike()


def _engines(folder: Path) -> list[list[dict[str, Any]]]:
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(folder.glob("*.jsonl"))]


def _used(engines: list[list[dict[str, Any]]], end: float, start_time: float) -> dict[str, Any]:
    """Return how long the engines worked, as a share of the time from their start to the last commit.

    At speed: a slow engine counts for less.
    """
    ready = [engine[0]["ready"] for engine in engines]
    worked = [sum(shard["end"] - shard["start"] for shard in engine[1:]) for engine in engines]
    last = [max((shard["end"] for shard in engine[1:]), default=engine[0]["ready"]) for engine in engines]
    total = sum(end - at for at in ready)
    shards = [shard for engine in engines for shard in engine[1:]]
    return {
        "engines": len(engines),
        "engines_ready_seconds": [round(at - start_time, 2) for at in sorted(ready)],
        "engine_seconds": total,
        "engine_seconds_at_speed": sum((end - e[0]["ready"]) / e[0]["factor"] for e in engines),
        "busy_share": sum(worked) / total,
        "tail_seconds": end - min(last),
        "shards": len(shards),
        "shard_seconds_median": statistics.median(shard["end"] - shard["start"] for shard in shards),
        "pure_shards": sum(shard["mixtures"] == 1 for shard in shards),
        "most_adapters_in_a_shard": max(shard["adapters"] for shard in shards),
    }


def counted(output: str, records: int) -> dict[str, int]:
    """Return how many records have no row in the output, and how many rows are there once more."""
    times = Counter(read_run(output).to_table(["id"])["id"].to_pylist())
    times.update(read_dead(output).to_table(["id"])["id"].to_pylist())
    expected = {f"r{row}" for row in range(records)}
    return {"lost": len(expected - times.keys()), "doubled": sum(n - 1 for n in times.values())}


def against(one: dict[str, Any], many: dict[str, Any]) -> dict[str, float]:
    """Return the efficiency of a run relative to one node: records per engine second, and per second and node."""
    by_engine = many["records"] / many["engine_seconds_at_speed"] / (one["records"] / one["engine_seconds_at_speed"])
    whole = many["records"] / many["job_seconds"] / many["nodes"] / (one["records"] / one["job_seconds"])
    return {"efficiency": by_engine, "efficiency_with_start": whole}
