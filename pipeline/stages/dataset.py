"""The Ray Data pipeline of one window: read, route, shuffle, generate, commit."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from pipeline.cluster.resources import Pools, StageResources
from pipeline.settings import JobSettings
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.input.plan import InputPlan
from pipeline.telemetry.incidents import Incidents

from .commit import CommitSink, WindowAttempt
from .generate import GenerateRecords
from .output_schema import OutputSchema
from .read import SplitReader, split_tables
from .route import RouteRecords
from .shard_plan import ShardLimits
from .shuffle import GenerateShards, Shuffle

# Rows of a batch of the route stage, which makes one tokenizer call for it.
_ROUTE_ROWS = 512

# Retries of a task whose process died. Ray Data retries without end by default, also for a record that kills the
# process that reads it each time. Rows that are given up stay without an answer, and run again in smaller batches.
TASK_RETRIES = 3
_MAX_FAILED_STARTS = 1  # of actors that replace one that could not start, before the job stops

# Shards in one generating actor at a time: while the last rows of one finish, the next one fills the engine. None is
# queued in an actor: it goes to the actor that is free first, so that a slow node holds few of the last shards.
_SHARDS_AT_ONCE = 2


@dataclass(frozen=True)
class WindowRun:
    """Passes over the rows of a window that have no answer yet.

    ``context``: of the model, in tokens. ``generator`` and ``router``: classes of the actors, with the arguments and
    results of `GenerateRecords` and `RouteRecords`. ``rows``: rows of the window to answer, None for all.
    """

    settings: JobSettings
    pools: Pools
    plan: InputPlan
    window: int
    context: int
    schema: OutputSchema
    incidents: Incidents
    generator: type = GenerateRecords
    router: type = RouteRecords
    rows: np.ndarray | None = None

    @property
    def wanted(self) -> np.ndarray:
        """Rows of the window to answer."""
        return np.arange(self.plan.window_size(self.window)) if self.rows is None else self.rows

    def some(self, missing: np.ndarray) -> np.ndarray | None:
        """Return the missing rows as `routed` takes them: None if all rows of the window are missing."""
        return None if len(missing) == self.plan.window_size(self.window) else missing

    def routed(self, missing: np.ndarray | None, shard_records: int) -> Any:
        """Read, route and shuffle the ``missing`` rows (None: all); return a Ray dataset of shards.

        Blocks that fail are dropped, so the caller compares and runs the missing rows again.
        """
        # Restart options are deprecated without a replacement of the same meaning; Ray is pinned.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        count = self.plan.window_size(self.window) if missing is None else len(missing)
        limits = ShardLimits(shard_records, self.settings.shard_adapters, self.settings.shard_mixtures)
        options = {"num_cpus": self.pools.read.cpus, "max_retries": TASK_RETRIES}
        return Shuffle(count, limits, self.settings.shuffle_task_records, options)(self._routed(missing, shard_records))

    def generate(self, routed: Any, markers: MarkerStore, attempt: str) -> None:
        """Answer and commit the shards of `routed`. ``attempt``: a name that no other pass over the window has."""
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
            **pools.generate.ray_options,
        )
        first_row = self.window * self.plan.window_rows
        sink = CommitSink(markers, self.schema, WindowAttempt(self.window, first_row, attempt), self.incidents)
        # No more writers than running shards: each is a process, which takes seconds of CPU to start.
        writers = _SHARDS_AT_ONCE * pools.generate.max_actors
        options = pools.write.ray_options | {"max_retries": TASK_RETRIES}
        generated.write_datasink(sink, ray_remote_args=options, concurrency=writers)

    def _routed(self, missing: np.ndarray | None, shard_records: int) -> Any:
        reader = SplitReader(
            self.settings.input, self.settings.columns, self.plan, self.window, missing, self.incidents, shard_records
        )
        splits = _drop_failed_blocks(ray.data.from_arrow(split_tables(self.plan, self.window, missing)))
        options = self.pools.read.ray_options | {"max_retries": TASK_RETRIES}
        records = splits.map_batches(reader.read, batch_format="pyarrow", **options)
        rows = min(_ROUTE_ROWS, shard_records)
        if shard_records < self.settings.shard_records:  # a failed block is lost whole, so blocks get smaller too
            records = records.repartition(target_num_rows_per_block=rows)
        arguments = (self.settings, self.context, self.incidents)
        return map_in_actors(
            records, self.router, arguments, self.pools.route, rows, max_restarts=-1, max_task_retries=1
        )


def map_in_actors(
    dataset: Any, stage: type, arguments: tuple[Any, ...], resources: StageResources, batch_size: int, **options: Any
) -> Any:
    """Return a Ray Dataset, lazily, of a stage's results for batches of another one; the stage runs in actors.

    ``arguments``: of the constructor of ``stage``. ``options``: further options of the actors.
    """
    return dataset.map_batches(
        stage,
        fn_constructor_args=arguments,
        batch_format="pyarrow",
        batch_size=batch_size,
        compute=_pool(resources),
        **resources.ray_options,
        **options,
    )


def _drop_failed_blocks(dataset: Any) -> Any:
    """Let a dataset, and the datasets made from it, drop failed blocks and wait without a limit.

    Ray Data would end an execution that makes no progress for half an hour, but a shard may take longer and nodes may
    come late. A forward pass that hangs has a watchdog of its own.
    """
    context = dataset.context
    context.max_errored_blocks = -1
    context.max_consecutive_actor_init_deaths = _MAX_FAILED_STARTS
    context.execution_no_progress_timeout_s = -1
    context.enable_progress_bars = False
    return dataset


def _pool(resources: StageResources, **options: Any) -> ActorPoolStrategy:
    return ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.max_actors, **options)
