"""Run a job on a cluster whose nodes join late, and print the number of shards that each engine answered, as JSON."""

import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from pipeline.cluster.connect import LOCAL, connect
from pipeline.cluster.resources import Pools, StageResources
from pipeline.job.generate import GenerateJob
from pipeline.records import COMPLETED
from pipeline.settings import JobSettings
from pipeline.stages.tables import with_columns
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.progress import Snapshot
from tests.job import ANSWER
from tests.stages import tiny_job

ENGINES, SECONDS = 3, 1.0


class Sleeps:
    """An engine whose shards take a second, and that notes them in a file of its own."""

    def __init__(self, settings: JobSettings, device: str, threads: int, incidents: Incidents) -> None:
        with incidents.recording_start("generate"):
            self.notes = Path(f"{settings.output}.engines") / f"{time.time_ns()}-{id(self)}"
            self.notes.parent.mkdir(exist_ok=True)

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(SECONDS)
        with self.notes.open("a") as notes:
            notes.write("x")
        return with_columns(table, COMPLETED, {name: [value] * table.num_rows for name, value in ANSWER.items()})


def main(folder: str, model: str, bank: str, router: str) -> None:
    """Start a head without a GPU and a node with one; two more join once the first engine works."""
    head = {"num_cpus": 2, "num_gpus": 0, "_system_config": dict(LOCAL)}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1, num_gpus=1)
    connect(cluster.address, 0)
    settings = replace(tiny_job(Path(folder), Path(model), Path(bank), Path(router)), shard_records=8)
    notes = Path(f"{settings.output}.engines")

    def join(snapshot: Snapshot) -> None:
        while snapshot.done and len(cluster.list_all_nodes()) < 1 + ENGINES:
            cluster.add_node(num_cpus=1, num_gpus=1)

    small = StageResources(0.25)
    generate = StageResources(0.1, gpus=1, min_actors=1, max_actors=ENGINES)
    pools = Pools(read=small, route=StageResources(0.5), generate=generate, write=small, threads=1)
    result = GenerateJob(settings, lambda line: None, generator=Sleeps, listener=join).run(lambda: pools)
    assert result.ok
    answered = Counter({path.name: path.stat().st_size for path in notes.iterdir()})
    print(json.dumps(list(answered.values())), flush=True)
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
