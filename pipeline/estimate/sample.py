"""Route and answer a sample of a job's records in this process, without Ray."""

import io
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.job.preflight import Prepared
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.output_schema import OutputSchema
from pipeline.stages.route import RouteRecords
from pipeline.storage.input.plan import InputPlan
from pipeline.storage.input.read import read_split, staged_tables

_RECORDS, _SPLITS = 512, 32  # routed records, and the splits that they come from, spread evenly over the input


@dataclass(frozen=True)
class RoutedSample:
    """The routed records of the sample. ``prompt_tokens`` [n]: of the records that would be answered.

    ``answers_each``: mean number of answers of such a record, one for each part of its prompt.
    """

    table: pa.Table
    prompt_tokens: np.ndarray
    mixtures: Counter[str]
    dead: Counter[str]
    fallback: int
    last_assistant: int = 0
    answers_each: float = 1.0

    @property
    def records(self) -> int:
        """The number of records, with the dead letters."""
        return int(self.table.num_rows)


@dataclass(frozen=True)
class AnsweredSample:
    """The answers of the sample. ``completion_tokens`` [n]; ``seconds`` [batches]: per record of each batch.

    ``bytes_low``, ``bytes_high``: per record of an output file, without and with the file's header and footer.
    """

    completion_tokens: np.ndarray
    seconds: np.ndarray
    bytes_low: float
    bytes_high: float
    device: str


def route_sample(settings: JobSettings, prepared: Prepared) -> RoutedSample:
    """Route records from the whole input, the same ones each time."""
    route = RouteRecords(settings, prepared.context)
    tables = [route(table) for table in _tables(settings, prepared.plan)]
    table = pa.concat_tables(tables)
    alive = table.filter(table["dead"].is_null())
    tokens = np.array([len(ids) for ids in alive["tokens"].to_pylist()])
    dead = Counter(letter["error_type"] for letter in table["dead"].drop_null().to_pylist())
    fallback, last_assistant = (
        int(alive[name].to_numpy(zero_copy_only=False).sum()) for name in ("fallback", "last_assistant")
    )
    mixtures = Counter(alive["mixture"].to_pylist())
    return RoutedSample(table, tokens, mixtures, dead, fallback, last_assistant, _answers_each(alive))


def answer_sample(
    settings: JobSettings, schema: OutputSchema, routed: RoutedSample, seconds: float, threads: int
) -> AnsweredSample | None:
    """Answer batches of the sample until ``seconds`` have passed, at least one; None if every record is dead."""
    alive = routed.table.filter(routed.table["dead"].is_null())
    if not alive.num_rows:
        return None
    alive = alive.take(pa.array(np.random.default_rng(0).permutation(alive.num_rows)))  # mixes neighbours
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generate = GenerateRecords(settings, device, threads)
    answered, durations, deadline = [], [], time.monotonic() + seconds
    for start in range(0, alive.num_rows, settings.engine.batch_size):
        batch = alive.slice(start, settings.engine.batch_size)
        start_time = time.monotonic()
        answered.append(generate(batch))
        durations.append((time.monotonic() - start_time) / batch.num_rows)
        if time.monotonic() >= deadline:
            break
    table = pa.concat_tables(answered)
    table = table.filter(table["dead"].is_null())
    name = f"{device}, {threads} threads" if device == "cpu" else torch.cuda.get_device_name()
    low, high = _bytes(schema, table)
    return AnsweredSample(table["completion_tokens"].to_numpy(), np.array(durations), low, high, name)


def _tables(settings: JobSettings, plan: InputPlan) -> Iterator[pa.Table]:
    splits = [(window, split) for window in range(plan.windows) for split in plan.splits(window)]
    indices = np.unique(np.linspace(0, len(splits) - 1, _SPLITS).round().astype(int))
    per_split = math.ceil(_RECORDS / len(indices))
    for window, split in (splits[i] for i in indices):
        part = replace(split, take=min(per_split, split.take))
        records = read_split(settings.input, part, settings.columns, plan.duplicates_of(window))
        yield pa.concat_tables(staged_tables(records, plan.passed, part.take))


def _answers_each(alive: pa.Table) -> float:
    if "prompt_parts" not in alive.schema.names or not alive.num_rows:
        return 1.0
    return float(np.mean([len(parts or [None]) for parts in alive["prompt_parts"].to_pylist()]))


def _bytes(schema: OutputSchema, table: pa.Table) -> tuple[float, float]:
    buffer = io.BytesIO()
    pq.write_table(schema.data_table(table), buffer, compression="zstd")
    file = pq.ParquetFile(buffer)
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    columns = sum(g.column(i).total_compressed_size for g in groups for i in range(g.num_columns))
    rows = max(1, table.num_rows)
    return columns / rows, buffer.getbuffer().nbytes / rows
