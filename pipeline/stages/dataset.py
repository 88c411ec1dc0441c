"""The Ray Data pipeline of a job: read, route, regroup, generate and commit, as one stream over all windows."""

import gc
import uuid
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from pipeline.cluster.resources import Pools, StageResources
from pipeline.settings import JobSettings
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.input.plan import InputPlan
from pipeline.telemetry.incidents import Incidents

from .commit import CommitShards, Committed
from .generate import GenerateRecords
from .output_schema import OutputSchema
from .read import Missing, SplitReader, count_missing, split_tables
from .regroup import GenerateShards, Regroup, block_size
from .route import RouteRecords
from .routing_pace import keep_pace
from .shard_plan import ShardLimits

# Rows of a batch of the route stage, which makes one tokenizer call for it, and of the stages in a user's dataset.
BATCH_ROWS = 512

# Retries of a task whose process died. Ray Data retries without end by default, also for a record that kills the
# process that reads it each time. Rows that are given up stay without an answer, and run again in the next pass.
TASK_RETRIES = 3
_MAX_FAILED_STARTS = 1  # of actors that replace one that could not start, before the job stops

# Shards that an engine works on: while the last rows of one finish, the next one fills the batch.
_SHARDS_AT_ONCE = 2
# Shards that are given to an engine. Ray Data adds an actor to the pool only where those there have almost twice as
# many as they work on.
_SHARDS_PER_ACTOR = 2 * _SHARDS_AT_ONCE


@dataclass(frozen=True)
class Stream:
    """Executions over the rows of a job that have no answer yet.

    ``context``: of the model, in tokens. ``generator`` and ``router``: classes of the actors, with the arguments and
    results of `GenerateRecords` and `RouteRecords`.
    """

    settings: JobSettings
    pools: Pools
    plan: InputPlan
    context: int
    schema: OutputSchema
    incidents: Incidents
    markers: MarkerStore
    generator: type = GenerateRecords
    router: type = RouteRecords

    def run(self, missing: Missing, shard_records: int, alone: bool = False) -> Generator[Committed, None, None]:
        """Answer the ``missing`` rows, and yield each shard soon after it is committed.

        ``alone``: one block at a time in an actor, so that its death is the fault of that block. Blocks that fail are
        dropped: the caller compares, and runs the rows that stay missing again. Closing the iterator ends the actors.
        """
        # Restart options are deprecated without a replacement of the same meaning; Ray is pinned.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks for")  # of a small job
        batches = iter(
            self._dataset(missing, shard_records, alone).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            )
        )
        try:
            for table in batches:
                yield from Committed.rows(table)
        finally:
            batches.close()  # type: ignore[attr-defined]  # a generator, which shuts the execution down
            # The errors of dropped blocks hold handles of their actors in reference cycles. An actor that is being
            # restarted would come back, and keep the GPU that the next pass waits for.
            gc.collect()

    def _dataset(self, missing: Missing, shard_records: int, alone: bool) -> Any:
        settings, plan, incidents = self.settings, self.plan, self.incidents
        records, is_first_pass = count_missing(plan, missing), shard_records == settings.shard_records
        pools = self.pools if is_first_pass else self.pools.for_shards(-(-records // shard_records))
        block = block_size(records, settings.block_records, plan)
        route_rows = min(BATCH_ROWS, shard_records)
        limits = ShardLimits(shard_records, settings.shard_adapters)
        reader = SplitReader(settings.input, settings.columns, plan, incidents, route_rows)
        regroup = Regroup(limits, block, pools.generate.max_actors, incidents)
        commit = CommitShards(self.markers, self.schema, plan.window_rows, uuid.uuid4().hex[:8], incidents)
        device = "cuda" if pools.generate.gpus else "cpu"
        given, at_once = (1, 1) if alone else (_SHARDS_PER_ACTOR, _SHARDS_AT_ONCE)
        tasks: dict[str, Any] = {"batch_format": "pyarrow", "max_retries": TASK_RETRIES}
        restarts = {"max_restarts": -1, "max_task_retries": 1}
        splits = _drop_failed_blocks(ray.data.from_arrow(split_tables(plan, missing)))
        keep_pace(splits.context)
        read = splits.map_batches(reader.read, **tasks, **pools.read.ray_options)
        if not is_first_pass:  # a failed block is lost whole, so blocks get smaller too
            read = _in_blocks(read, route_rows)
        routed = read.map_batches(
            self.router,
            fn_constructor_args=(settings, self.context, incidents),
            batch_format="pyarrow",
            batch_size=route_rows,
            compute=_pool(pools.route, **({"max_tasks_in_flight_per_actor": 1} if alone else {})),
            **restarts,
            **pools.route.ray_options,
        )
        return (
            _in_blocks(routed.map_batches(regroup, batch_size=block, **tasks, **pools.read.ray_options), 1)
            .map_batches(
                GenerateShards,
                fn_constructor_args=(self.generator, settings, device, pools, incidents),
                batch_format="pyarrow",
                batch_size=1,
                compute=_pool(
                    pools.generate,
                    max_tasks_in_flight_per_actor=given,
                    max_concurrent_calls_per_actor=at_once,
                    enable_true_multi_threading=True,
                ),
                **restarts,
                **pools.generate.ray_options,
            )
            # No more writers than running shards: each is a process, which takes seconds of CPU to start.
            .map_batches(
                commit,
                batch_size=None,
                compute=TaskPoolStrategy(_SHARDS_AT_ONCE * pools.generate.max_actors),
                **tasks,
                **pools.write.ray_options,
            )
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


def _in_blocks(dataset: Any, rows: int) -> Any:
    """Let the last stage of a dataset write blocks of this many rows, and read as many rows as its batches have.

    Ray Data fuses a repartition with the stage before it if both ask for the same resources. By itself it would ask for
    a CPU of its own: on two CPUs none is left for it until all records are routed. A strict one also makes the batches
    of its stage exact; otherwise the rest of each group of blocks is a small batch of its own.
    """
    stage = dataset._logical_plan.dag
    blocks = dataset.repartition(target_num_rows_per_block=rows, strict=stage.batch_size is not None)
    blocks._logical_plan.dag.ray_remote_args.update(stage.ray_remote_args)
    return blocks


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
    return ActorPoolStrategy(min_size=resources.min_actors, max_size=resources.max_actors or None, **options)
