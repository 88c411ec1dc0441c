"""Sample a bounded number of rows from a run's output, whatever its size."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

from pipeline.storage.types.values import python_rows

_MAX_FILES, _MAX_ROWS, _BATCH = 12, 12_000, 64
_MAX_EXAMPLES, _MAX_TEXT = 3, 700  # records of each mixture or error type, and characters of each text
_NUMBERS = ("prompt_tokens", "completion_tokens", "route_score", "fallback")
_TEXTS = ("id", "prompt", "messages", "output", "finish_reason", "route_score")


@dataclass
class OutputSample:
    """``rows`` sampled rows. ``numbers``: one array [rows] for each numeric column; ``examples``: rows by mixture."""

    rows: int = 0
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def sample_data(dataset: pa.dataset.Dataset, mixtures: list[str]) -> OutputSample:
    """Sample some thousand rows from files spread evenly over the run, with examples of some ``mixtures``."""
    columns = [name for name in (*_NUMBERS, *_TEXTS, "mixture") if name in dataset.schema.names]
    numbers: dict[str, list[np.ndarray]] = defaultdict(list)
    examples: dict[str, list[dict[str, Any]]] = {mixture: [] for mixture in mixtures}
    rows = 0
    for batch in _batches(dataset, list(dict.fromkeys(columns))):
        rows += batch.num_rows
        for name in _NUMBERS:
            numbers[name].append(batch[name].to_numpy(zero_copy_only=False))
        for index, mixture in enumerate(batch["mixture"].to_pylist()):
            if mixture in examples and len(examples[mixture]) < _MAX_EXAMPLES:
                examples[mixture].append(_row(batch, index, _TEXTS))
    arrays = {name: np.concatenate(parts) for name, parts in numbers.items()}
    return OutputSample(rows, arrays, {mixture: found for mixture, found in examples.items() if found})


def sample_dead_letters(dataset: pa.dataset.Dataset) -> dict[str, list[dict[str, Any]]]:
    """Return a few dead letters of each error type, from the first rows of some files."""
    examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for batch in _batches(dataset, ["id", "stage", "error_type", "message", "record"]):
        for index, error_type in enumerate(batch["error_type"].to_pylist()):
            if len(examples[error_type]) < _MAX_EXAMPLES:
                examples[error_type].append(_row(batch, index, ("id", "stage", "message", "record")))
    return dict(examples)


def _batches(dataset: pa.dataset.Dataset, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield small batches from the start of a few files, ``_MAX_ROWS`` rows at most."""
    fragments = list(dataset.get_fragments())
    evenly = np.linspace(0, max(0, len(fragments) - 1), min(_MAX_FILES, len(fragments)))
    indices: list[int] = evenly.round().astype(int).tolist()
    rows_per_file = -(-_MAX_ROWS // max(1, len(indices)))
    for index in indices:
        left = rows_per_file
        for batch in fragments[index].to_batches(
            schema=dataset.schema, columns=columns, batch_size=_BATCH, batch_readahead=0, fragment_readahead=0
        ):
            yield batch.slice(0, left)
            left -= batch.num_rows
            if left <= 0:
                break


def _row(batch: pa.RecordBatch, index: int, names: tuple[str, ...]) -> dict[str, Any]:
    [row] = python_rows(batch.slice(index, 1).select([name for name in names if name in batch.schema.names]))
    return {name: shorten(value) if isinstance(value, str) else value for name, value in row.items()}


def shorten(text: str) -> str:
    """Return the start of a text that may be long."""
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + " ..."
