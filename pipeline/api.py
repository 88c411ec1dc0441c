"""The Python API: `generate` and `route` over a list of dicts, a Ray Dataset, or a URL."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from conf.generate import load_config

from .artifacts import write_artifacts
from .auto_engine import any_engine, choose_engine
from .batches import Generate, Route
from .cluster.connect import connect
from .cluster.resources import Pools
from .cluster.sizing import threads_here
from .errors import UserError
from .exact_json import loads
from .from_config import job_settings
from .job.generate import GenerateJob
from .pools import pools_of, start_pools
from .stages.dataset import BATCH_ROWS, map_in_actors
from .storage import read_run
from .storage.types.values import is_json_text

Records = Any
"""A list of dicts, a Ray Dataset, or the URL of an input (`generate` only)."""

_RowFunction = Callable[[dict[str, Any]], dict[str, Any]]


def generate(records: Records, config: Sequence[str] = (), output: str | None = None) -> Any:
    """Answer records, each with its own mixture of adapters.

    - A list of dicts is answered in this process, without Ray, and returned as a list of dicts in the same order, with
      `output`, `mixture` and the other columns of docs/output.md, and `error` if a record has no answer. The engine is
      kept for the next call with the same config.
    - A Ray Dataset is returned as a lazy Ray Dataset with these columns.
    - A URL is answered like `loraloom generate`, exactly once and resumable, into the URL ``output``; the answers are
      returned as a `pyarrow.dataset.Dataset` (`read_run`).

    ``config``: words as on the command line: ``["bank=custom", "bank.path=my/bank", "generation.temperature=0.7"]``.
    Raises `UserError` if config, model, bank, router or input are wrong.
    """
    if isinstance(records, str):
        if output is None:
            raise UserError("generate: a URL needs an output URL too")
        return _run_job(records, output, config)
    if output is not None:
        raise UserError("generate: output goes with the URL of an input; write a Ray Dataset with its own methods")
    if _is_dataset(records):
        chosen = choose_engine(config, load_config(config))  # here, so that all actors have the same
        pools = start_pools(chosen.config)
        rows = min(BATCH_ROWS, chosen.config.shuffle.shard_records)
        return map_in_actors(records, _GenerateOnNode, (chosen.words, pools), pools.generate, rows)
    return _rows(_cached_stage(Generate, tuple(config))(list(records)))


def route(records: Records, config: Sequence[str] = ()) -> Any:
    """Return the mixture of each record and its explanation, without an answer; ``records``: a list or Ray Dataset."""
    if isinstance(records, str):
        raise UserError("route: give a list of dicts or a Ray Dataset; `loraloom route` takes URLs")
    if _is_dataset(records):
        settings = any_engine(config)
        connect(settings.cluster.address, settings.cluster.cpus)
        rows = min(BATCH_ROWS, settings.shuffle.shard_records)
        return map_in_actors(records, Route, (tuple(config),), pools_of(settings).route, rows)
    return _rows(_cached_stage(Route, tuple(config))(list(records)))


def build_processor(
    config: Sequence[str] = (), preprocess: _RowFunction | None = None, postprocess: _RowFunction | None = None
) -> Callable[[Any], Any]:
    """Return a function from Ray Dataset to Ray Dataset, like that of `ray.data.llm.build_processor`.

    ``preprocess`` makes `prompt` or `messages` of a row, and optionally `sampling_params`. The row's other columns stay
    until ``postprocess``, which gets the answer as `output`.
    """
    words = ["input.sampling_column=sampling_params", *config]

    def process(dataset: Any) -> Any:
        if preprocess is not None:
            dataset = dataset.map(lambda row: {**row, **preprocess(row)})
        answered = generate(dataset, words)
        return answered if postprocess is None else answered.map(postprocess)

    return process


class _GenerateOnNode(Generate):
    """`Generate` with the threads of the actor's own node."""

    def __init__(self, config: Sequence[str], pools: Pools) -> None:
        super().__init__(config, threads=threads_here(pools))


@lru_cache(maxsize=2)
def _cached_stage(stage: type[Route], config: tuple[str, ...]) -> Route:
    return stage(config)


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table of results; columns of JSON text are parsed, to the values that were given."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for name in [field.name for field in table.schema if is_json_text(field)]:
        for row in rows:
            row[name] = None if row[name] is None else loads(row[name])
    return rows


def _run_job(source: str, output: str, config: Sequence[str]) -> Any:
    chosen = choose_engine(config, load_config(config), output)
    settings = job_settings(chosen.config, source, output, engine_reason=chosen.choice.reason)
    result = GenerateJob(settings).run(lambda: start_pools(chosen.config))
    write_artifacts(output, chosen.config, result, print)
    if result.over_budget or result.incomplete:
        raise UserError(
            f"generate: {result.counts.dead} dead letters and {result.incomplete} records without an answer of"
            f" {result.records}; see read_dead, then call again to finish"
        )
    return read_run(output)


def _is_dataset(records: Any) -> bool:
    return hasattr(records, "map_batches")
