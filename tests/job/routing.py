"""Run a job with routers and engines of given speeds, and print how many routing actors were started, as JSON."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from pipeline.cluster.connect import LOCAL, connect
from pipeline.cluster.resources import Pools, StageResources
from pipeline.cluster.sizing import size_pools
from pipeline.job.generate import GenerateJob
from pipeline.records import COMPLETED, ROUTED
from pipeline.settings import JobSettings
from pipeline.stages.tables import with_columns
from pipeline.telemetry.incidents import Incidents
from tests.job import ANSWER
from tests.rows import ROUTE
from tests.stages import tiny_job

CPUS, ENGINE_START, SHARD_ROWS, BLOCK_ROWS = 6, 8.0, 512, 2048


class Routes:
    """A router that takes ``config["route"]`` seconds for a table, and gives all records the same mixture."""

    def __init__(self, settings: JobSettings, context: int, incidents: Incidents) -> None:
        with incidents.recording_start("route"):
            self.seconds = settings.config["route"]

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(self.seconds)
        made = ROUTE | {"mixture": "red:1.0", "route_score": 1.0, "route_confidence": 1.0}
        return with_columns(table, ROUTED, {name: [value] * table.num_rows for name, value in made.items()})


class Answers:
    """An engine that takes ``config["answer"]`` seconds for a shard, and longer to start than the first is routed."""

    def __init__(self, settings: JobSettings, device: str, threads: int, incidents: Incidents) -> None:
        time.sleep(ENGINE_START)
        self.seconds = settings.config["answer"]

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(self.seconds)
        return with_columns(table, COMPLETED, {name: [value] * table.num_rows for name, value in ANSWER.items()})


def main(folder: str, model: str, bank: str, router: str, route: str, answer: str) -> None:
    """Start a node with a fake GPU and CPUs for several routers."""
    head = {"num_cpus": CPUS, "num_gpus": 1, "_system_config": dict(LOCAL)}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    connect(cluster.address, 0)
    settings = replace(
        tiny_job(Path(folder), Path(model), Path(bank), Path(router)),
        shard_records=SHARD_ROWS,
        block_records=BLOCK_ROWS,
        config={"route": float(route), "answer": float(answer)},
    )
    small = StageResources(0.25)
    generate = StageResources(1.0, gpus=1, min_actors=0, max_actors=0)
    pools = Pools(read=small, route=StageResources(0.5, max_actors=0), generate=generate, write=small, threads=1)
    job = GenerateJob(settings, lambda line: None, generator=Answers, router=Routes)
    assert job.run(lambda: size_pools(pools)).ok
    timings = json.loads((Path(folder) / "out" / "run.json").read_text())["timings"]
    print(json.dumps(timings["stages"]["route start"]["calls"]), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
