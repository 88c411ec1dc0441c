"""The Ray Data graph of one window."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataContext

from ..storage.commit import CommitLog
from ..storage.plan import InputPlan
from .generate import GenerateRecords
from .incidents import Incidents
from .read import SplitReader, split_tables
from .route import RouteRecords
from .settings import JobSettings, Pools
from .sink import CommitSink, OutputShape, Place

# Batches of the route stage: one tokenizer call each.
_ROUTE_ROWS = 512

# Batches in one generating actor: while the last rows of one end, those of the next fill the engine.
_BATCHES_AT_ONCE = 2


@dataclass(frozen=True)
class WindowRun:
    """Passes over the rows of a window that have no answer yet.

    ``generator``: the class of the generating actors, with the arguments and the result of `GenerateRecords`.
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
    rows: np.ndarray | None = None

    @property
    def wanted(self) -> np.ndarray:
        """Rows of the window that are to be answered: ``rows``, or all."""
        return np.arange(self.plan.window_size(self.window)) if self.rows is None else self.rows

    def some(self, missing: np.ndarray) -> np.ndarray | None:
        """The rows as `routed` takes them."""
        return None if len(missing) == self.plan.window_size(self.window) else missing

    def routed(self, missing: np.ndarray | None, shard_records: int) -> Any:
        """Read, route, shuffle: a Ray dataset of the rows ``missing`` (all: None), in blocks of rows that run together.

        Blocks that fail are dropped: the caller compares and runs again.
        """
        context = DataContext.get_current()
        context.max_errored_blocks = -1
        context.enable_progress_bars = False
        count = self.plan.window_size(self.window) if missing is None else len(missing)
        return _by_mixture(self._routed(missing), count, shard_records)

    def generate(self, routed: Any, log: CommitLog, attempt: str, shard_records: int) -> None:
        """Answer and commit the rows that `routed` gave, or those that a materialised one holds."""
        # The restart options are deprecated without a replacement of the same meaning; Ray is pinned.
        warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
        device = "cuda" if self.pools.gpus else "cpu"
        generated = routed.map_batches(
            self.generator,
            fn_constructor_args=(self.settings, device, self.pools.threads, self.incidents),
            batch_format="pyarrow",
            batch_size=shard_records,
            num_cpus=self.pools.generate_cpus,
            num_gpus=self.pools.gpus or None,
            compute=ActorPoolStrategy(
                size=self.pools.generate_actors,
                max_concurrent_calls_per_actor=_BATCHES_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            max_restarts=-1,
            max_task_retries=1,
        )
        first_row = self.window * self.plan.window_rows
        sink = CommitSink(log, self.shape, Place(self.window, first_row, attempt), self.incidents)
        # No more writers than shards are in work: each is a process, seconds of CPU to start.
        writers = _BATCHES_AT_ONCE * self.pools.generate_actors
        generated.write_datasink(sink, ray_remote_args={"num_cpus": self.pools.write_cpus}, concurrency=writers)

    def _routed(self, missing: np.ndarray | None) -> Any:
        reader = SplitReader(
            self.settings.input, self.settings.columns, self.plan, self.window, missing, self.incidents
        )
        splits = ray.data.from_arrow(split_tables(self.plan, self.window, missing))
        records = splits.map_batches(reader.read, batch_format="pyarrow", num_cpus=self.pools.read_cpus)
        return records.map_batches(
            RouteRecords,
            fn_constructor_args=(self.settings, self.context, self.incidents),
            batch_format="pyarrow",
            batch_size=_ROUTE_ROWS,
            num_cpus=self.pools.route_cpus,
            compute=ActorPoolStrategy(size=self.pools.route_actors),
        )


def _by_mixture(routed: Any, count: int, shard_records: int) -> Any:
    """Rows of a mixture together, in blocks of bounded size.

    The keyed repartition puts each mixture whole into one partition, sorted; the streaming one after it cuts hot
    mixtures and joins rare ones. Rows that fit one shard need no shuffle: the engine takes mixed batches.
    """
    if count <= shard_records:
        return routed.repartition(target_num_rows_per_block=shard_records)
    partitions = max(1, min(256, count // (4 * shard_records)))
    keyed = routed.repartition(partitions, keys=["mixture"], sort=True)
    return keyed.repartition(target_num_rows_per_block=shard_records)
