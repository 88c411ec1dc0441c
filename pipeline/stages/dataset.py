"""The Ray Data graph of one window."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from pipeline.cluster.resources import Pools, StageResources
from pipeline.settings import JobSettings
from pipeline.storage.commit.log import CommitLog
from pipeline.storage.input.plan import InputPlan
from pipeline.telemetry.incidents import Incidents

from .commit import CommitSink, OutputShape, Place
from .generate import GenerateRecords
from .read import SplitReader, split_tables
from .route import RouteRecords
from .shard_plan import ShardLimits
from .shuffle import GenerateShards, Shuffle

# Batches of the route stage: one tokenizer call each.
_ROUTE_ROWS = 512

# Tries of a task after its process died. Ray Data's own default is for ever: a record that kills the process that reads
# or routes it would do so again and again. What is given up is missing, and comes again in smaller batches.
TASK_RETRIES = 3
_MORE_STARTS = 1  # of an actor in the place of one that could not start, before the job stops

# Shards in one generating actor: while the last rows of one end, those of the next fill the engine. None waits there:
# it goes to the actor that is free first, so that a slow node holds few of the last ones.
_SHARDS_AT_ONCE = 2


@dataclass(frozen=True)
class WindowRun:
    """Passes over the rows of a window that have no answer yet.

    ``generator``, ``router``: the classes of the actors, with the arguments and the result of `GenerateRecords` and
    `RouteRecords`.
    ``rows``: those that are to be answered; None: all.
    """

    settings: JobSettings
    pools: Pools
    plan: InputPlan
    window: int
    context: int
    shape: OutputShape
    incidents: Incidents
    generator: type = GenerateRecords
    router: type = RouteRecords
    rows: np.ndarray | None = None

    @property
    def wanted(self) -> np.ndarray:
        """Rows of the window that are to be answered: ``rows``, or all."""
        return np.arange(self.plan.window_size(self.window)) if self.rows is None else self.rows

    def some(self, missing: np.ndarray) -> np.ndarray | None:
        """The rows as `routed` takes them."""
        return None if len(missing) == self.plan.window_size(self.window) else missing

    def routed(self, missing: np.ndarray | None, shard_records: int) -> Any:
        """Read, route, shuffle: a Ray dataset of the rows ``missing`` (all: None), as shards: rows that run together.

        Blocks that fail are dropped: the caller compares and runs again.
        """
        # Restart options are deprecated without a replacement of the same meaning; Ray is pinned.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        count = self.plan.window_size(self.window) if missing is None else len(missing)
        limits = ShardLimits(shard_records, self.settings.shard_adapters, self.settings.shard_mixtures)
        options = {"num_cpus": self.pools.read.cpus, "max_retries": TASK_RETRIES}
        return Shuffle(count, limits, self.settings.shuffle_task_records, options)(self._routed(missing, shard_records))

    def generate(self, routed: Any, log: CommitLog, attempt: str) -> None:
        """Answer and commit the rows that `routed` gave, or those that a materialised one holds."""
        warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for 'Write'")
        pools = self.pools
        device = "cuda" if pools.generate.gpus else "cpu"
        generated = routed.map_batches(
            GenerateShards,
            fn_constructor_args=(self.generator, self.settings, device, pools.threads, self.incidents),
            batch_format="pyarrow",
            batch_size=1,
            compute=_pool(
                pools.generate,
                max_tasks_in_flight_per_actor=_SHARDS_AT_ONCE,
                max_concurrent_calls_per_actor=_SHARDS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            max_restarts=-1,
            max_task_retries=1,
            **pools.generate.asked,
        )
        first_row = self.window * self.plan.window_rows
        sink = CommitSink(log, self.shape, Place(self.window, first_row, attempt), self.incidents)
        # No more writers than shards are in work: each is a process, seconds of CPU to start.
        writers = _SHARDS_AT_ONCE * pools.generate.max_actors
        asked = pools.write.asked | {"max_retries": TASK_RETRIES}
        generated.write_datasink(sink, ray_remote_args=asked, concurrency=writers)

    def _routed(self, missing: np.ndarray | None, shard_records: int) -> Any:
        reader = SplitReader(
            self.settings.input, self.settings.columns, self.plan, self.window, missing, self.incidents, shard_records
        )
        splits = _settled(ray.data.from_arrow(split_tables(self.plan, self.window, missing)))
        asked = self.pools.read.asked | {"max_retries": TASK_RETRIES}
        records = splits.map_batches(reader.read, batch_format="pyarrow", **asked)
        rows = min(_ROUTE_ROWS, shard_records)
        if shard_records < self.settings.shard_records:  # blocks are lost whole: what was lost with one record parts
            records = records.repartition(target_num_rows_per_block=rows)
        return records.map_batches(
            self.router,
            fn_constructor_args=(self.settings, self.context, self.incidents),
            batch_format="pyarrow",
            batch_size=rows,
            compute=_pool(self.pools.route),
            max_restarts=-1,
            max_task_retries=1,
            **self.pools.route.asked,
        )


def _settled(dataset: Any) -> Any:
    """A dataset whose failed blocks are dropped; what is made of it inherits that, other datasets do not.

    Ray Data would end an execution in which nothing moves for half an hour, as where a shard takes longer: a pass that
    hangs has a watchdog of its own, and nodes may come late.
    """
    context = dataset.context
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = _MORE_STARTS
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    return dataset


def _pool(share: StageResources, **options: Any) -> ActorPoolStrategy:
    return ActorPoolStrategy(min_size=share.actors, max_size=share.max_actors, **options)
