"""Metrics of the stages for Prometheus, through Ray; docker/grafana/loraloom.json is their dashboard.

Ray's agents export them if ``ray[default]`` is installed, under these names with the prefix ``ray_``; without it they
are dropped. Each process creates a metric once.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.util.metrics import Counter, Gauge, Metric

from pipeline.storage.commit.counts import Counts

if TYPE_CHECKING:  # write tasks count too, and must not load torch for it
    from pipeline.engine.backend import EngineLoad

COUNTERS = {
    "loraloom_routed_records": "Records that got a mixture",
    "loraloom_fallback_records": "Records that the gate rejected, so that they got the fallback",
    "loraloom_records": "Records that were answered and committed",
    "loraloom_dead_letters": "Records that were committed as dead letters",
    "loraloom_prompt_tokens": "Prompt tokens of committed records",
    "loraloom_completion_tokens": "Generated tokens of committed records",
    "loraloom_adapter_loads": "Adapters loaded to the device",
    "loraloom_adapter_evictions": "Adapters evicted from the device",
}
GAUGES = {
    "loraloom_batch_fill": "Share of the engine's batch rows in use, 0 to 1",
    "loraloom_batch_mixtures": "Distinct mixtures in the batch",
    "loraloom_queue_depth": "Requests waiting in an actor",
    "loraloom_kv_use": "Share of the KV cache in use, 0 to 1",
}


def count_routed(run: str, table: pa.Table) -> None:
    """Count the rows of a routed table."""
    routed = table.filter(table["dead"].is_null())
    _count(run, "loraloom_routed_records", routed.num_rows)
    _count(run, "loraloom_fallback_records", pc.sum(routed["fallback"]).as_py() or 0)


def count_committed(run: str, counts: Counts) -> None:
    """Count a committed shard."""
    _count(run, "loraloom_records", counts.data)
    _count(run, "loraloom_dead_letters", counts.dead)
    _count(run, "loraloom_prompt_tokens", counts.prompt_tokens)
    _count(run, "loraloom_completion_tokens", counts.completion_tokens)


class EngineMetrics:
    """The metrics of one generating actor."""

    def __init__(self, run: str, actor: str) -> None:
        self._run = run
        self._tags = {"run": run, "actor": actor}
        self._loads = self._evictions = 0

    def report(self, load: "EngineLoad") -> None:
        """Set the gauges, and count adapter loads and evictions since the last call."""
        for name, value in {
            "loraloom_batch_fill": load.rows / load.max_rows,
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
