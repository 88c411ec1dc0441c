"""The commands as functions: over a list of dicts, a Ray Dataset, or a URL."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from conf.generate import load_config

from .artifacts import write_derived
from .batches import Generate, Route
from .cluster.connect import connect
from .errors import UserError
from .from_config import job_settings
from .job.generate import GenerateJob
from .pools import pools_of, start_pools
from .stages.mapped import map_stage
from .storage import read_run

Records = Any
"""A list of dicts, a Ray Dataset, or the URL of an input (`generate` only)."""

_RowFunction = Callable[[dict[str, Any]], dict[str, Any]]


def generate(records: Records, config: Sequence[str] = (), output: str | None = None) -> Any:
    """Answer records, each with its own mixture of adapters.

    - A list of dicts is answered in this process, without Ray, and comes back as a list of dicts in its order, with
      `output`, `mixture` and the other columns of docs/output.md, and `error` where a record has no answer. The engine
      is kept for the next call of the same config.
    - A Ray Dataset comes back as one with these columns, lazily: nothing runs until it is read.
    - A URL is answered as `jobs.generate` does, exactly once and resumable, into the URL ``output``; what comes back is
      the `pyarrow.dataset.Dataset` of the answers (`read_run`).

    ``config``: words as the command takes them: ``["bank=custom", "bank.path=my/bank", "generation.temperature=0.7"]``.
    Raises `UserError` where something is wrong with config, model, bank, router or input.
    """
    if isinstance(records, str):
        if output is None:
            raise UserError("generate: a URL needs an output URL too")
        return _run(records, output, list(config))
    if output is not None:
        raise UserError("generate: output goes with the URL of an input; write a Ray Dataset with its own methods")
    if _is_dataset(records):
        settings = load_config(list(config))
        pools = start_pools(settings)
        return map_stage(
            records, Generate, (tuple(config), None, pools.threads), pools.generate, settings.shuffle.shard_records
        )
    return _kept(Generate, tuple(config))(list(records)).to_pylist()


def route(records: Records, config: Sequence[str] = ()) -> Any:
    """The mixture of each record, and why, without answering it: lists become lists, Ray Datasets become such."""
    if isinstance(records, str):
        raise UserError("route: give a list of dicts or a Ray Dataset; jobs.route takes URLs")
    if _is_dataset(records):
        settings = load_config(list(config))
        connect(settings.cluster.address, settings.cluster.cpus)
        return map_stage(records, Route, (tuple(config),), pools_of(settings).route, settings.shuffle.shard_records)
    return _kept(Route, tuple(config))(list(records)).to_pylist()


def build_processor(
    config: Sequence[str] = (), preprocess: _RowFunction | None = None, postprocess: _RowFunction | None = None
) -> Callable[[Any], Any]:
    """What `ray.data.llm.build_processor` is, with a mixture of adapters for each record.

    It takes a Ray Dataset and gives one. ``preprocess`` makes of a row its `prompt` or `messages`, and where it likes
    `sampling_params`; the row's other columns stay until ``postprocess``, which sees the answer as `output`.
    """
    words = ["input.sampling_column=sampling_params", *config]

    def process(dataset: Any) -> Any:
        if preprocess is not None:
            dataset = dataset.map(lambda row: {**row, **preprocess(row)})
        answered = generate(dataset, words)
        return answered if postprocess is None else answered.map(postprocess)

    return process


@lru_cache(maxsize=2)
def _kept(stage: type[Route], config: tuple[str, ...]) -> Route:
    return stage(config)


def _run(source: str, output: str, config: list[str]) -> Any:
    settings = load_config(config)
    result = GenerateJob(job_settings(settings, source, output)).run(lambda: start_pools(settings))
    write_derived(output, settings, result, print)
    if result.over_budget or result.incomplete:
        raise UserError(
            f"generate: {result.counts.dead} dead letters and {result.incomplete} records without an answer of"
            f" {result.records}; see read_dead, then call again to finish"
        )
    return read_run(output)


def _is_dataset(records: Any) -> bool:
    return hasattr(records, "map_batches")
