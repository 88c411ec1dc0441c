"""What the stages count for Prometheus, through Ray; docker/grafana/loraloom.json draws it.

Ray's agents export it where ``ray[default]`` is installed, under these names with ``ray_`` before them; elsewhere it
goes nowhere. Metrics are made once a process: tasks share theirs.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util.metrics import Counter, Gauge, Metric

from pipeline.storage.commit.counts import Counts

if TYPE_CHECKING:  # write tasks count too, and must not load torch for it
    from pipeline.engine.backend import Load

COUNTERS = {
    "loraloom_routed_records": "Records that got a mixture",
    "loraloom_fallback_records": "Of those, records that the gate left to the base model alone",
    "loraloom_records": "Records that are answered and committed",
    "loraloom_dead_letters": "Records that are committed as dead letters",
    "loraloom_prompt_tokens": "Prompt tokens of committed records",
    "loraloom_completion_tokens": "Generated tokens of committed records",
    "loraloom_adapter_loads": "Adapters brought to the device",
    "loraloom_adapter_evictions": "Adapters put out of the device to make room",
}
GAUGES = {
    "loraloom_batch_fill": "Rows of the engine that are in use, 0 to 1",
    "loraloom_batch_mixtures": "Distinct mixtures among the rows",
    "loraloom_queue_depth": "Requests that wait in an actor",
    "loraloom_kv_use": "Positions of the KV cache that are held, 0 to 1",
}


def count_routed(run: str, table: pa.Table) -> None:
    """Count the rows of a routed table."""
    routed = table.filter(table["dead_stage"].is_null())
    _count(run, "loraloom_routed_records", routed.num_rows)
    _count(run, "loraloom_fallback_records", pc.sum(routed["fallback"]).as_py() or 0)


def count_committed(run: str, counts: Counts) -> None:
    """Count a committed shard."""
    _count(run, "loraloom_records", counts.data)
    _count(run, "loraloom_dead_letters", counts.dead)
    _count(run, "loraloom_prompt_tokens", counts.prompt_tokens)
    _count(run, "loraloom_completion_tokens", counts.completion_tokens)


class EngineMetrics:
    """Of one generating actor; `show` is called every few seconds."""

    def __init__(self, run: str, actor: str) -> None:
        self._run = run
        self._tags = {"run": run, "actor": actor}
        self._loads = self._evictions = 0

    def show(self, load: "Load") -> None:
        """Put the engine's state out; loads and evictions are counted from the last time."""
        for name, value in {
            "loraloom_batch_fill": load.rows / load.most_rows,
            "loraloom_batch_mixtures": load.mixtures,
            "loraloom_queue_depth": load.waiting,
            "loraloom_kv_use": load.kv_positions / load.kv_limit,
        }.items():
            _gauge(name).set(value, self._tags)
        _count(self._run, "loraloom_adapter_loads", load.adapter_loads - self._loads)
        _count(self._run, "loraloom_adapter_evictions", load.adapter_evictions - self._evictions)
        self._loads, self._evictions = load.adapter_loads, load.adapter_evictions


def _count(run: str, name: str, value: float) -> None:
    if value > 0 and ray.is_initialized():
        _counter(name).inc(value, {"run": run})


@cache
def _counter(name: str) -> Any:
    return Counter(name, COUNTERS[name], ("run",))


@cache
def _gauge(name: str) -> Metric:
    return Gauge(name, GAUGES[name], ("run", "actor"))
