"""A bounded look at what a run wrote: some rows of some files, however many there are."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset

_FILES, _ROWS, _BATCH = 12, 12_000, 64
_EXAMPLES, _TEXT = 3, 700  # records shown of each mixture or error, and characters of each text
_NUMBERS = ("prompt_tokens", "completion_tokens", "route_score", "fallback")
_TEXTS = ("id", "prompt", "output", "finish_reason", "route_score")


@dataclass
class Sample:
    """Rows that were looked at. ``numbers``: one array [rows] for each of some columns; ``examples``: by mixture."""

    rows: int = 0
    numbers: dict[str, np.ndarray] = field(default_factory=dict)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def sample_data(dataset: pa.dataset.Dataset, mixtures: list[str]) -> Sample:
    """Numbers of some thousand rows from files that lie evenly over the run, and examples of some ``mixtures``."""
    columns = [name for name in (*_NUMBERS, *_TEXTS, "mixture") if name in dataset.schema.names]
    numbers: dict[str, list[np.ndarray]] = defaultdict(list)
    examples: dict[str, list[dict[str, Any]]] = {mixture: [] for mixture in mixtures}
    rows = 0
    for batch in _batches(dataset, list(dict.fromkeys(columns))):
        rows += batch.num_rows
        for name in _NUMBERS:
            numbers[name].append(batch[name].to_numpy(zero_copy_only=False))
        for place, mixture in enumerate(batch["mixture"].to_pylist()):
            wanted = examples.get(mixture)
            if wanted is not None and len(wanted) < _EXAMPLES:
                wanted.append(_shortened(batch.slice(place, 1), _TEXTS))
    joined = {name: np.concatenate(parts) for name, parts in numbers.items()}
    return Sample(rows, joined, {mixture: found for mixture, found in examples.items() if found})


def sample_dead(dataset: pa.dataset.Dataset) -> dict[str, list[dict[str, Any]]]:
    """A few dead letters of each error type, among the first of some files."""
    examples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for batch in _batches(dataset, ["id", "stage", "error_type", "message", "record"]):
        for place, kind in enumerate(batch["error_type"].to_pylist()):
            if len(examples[kind]) < _EXAMPLES:
                examples[kind].append(_shortened(batch.slice(place, 1), ("id", "stage", "message", "record")))
    return dict(examples)


def _batches(dataset: pa.dataset.Dataset, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Small batches from the starts of a few files, ``_ROWS`` rows at most."""
    fragments = list(dataset.get_fragments())
    evenly = np.linspace(0, max(0, len(fragments) - 1), min(_FILES, len(fragments)))
    places: list[int] = evenly.round().astype(int).tolist()
    each = -(-_ROWS // max(1, len(places)))
    for place in places:
        left = each
        for batch in fragments[place].to_batches(
            schema=dataset.schema, columns=columns, batch_size=_BATCH, batch_readahead=0, fragment_readahead=0
        ):
            yield batch.slice(0, left)
            left -= batch.num_rows
            if left <= 0:
                break


def _shortened(row: pa.RecordBatch, names: tuple[str, ...]) -> dict[str, Any]:
    values = row.select([name for name in names if name in row.schema.names]).to_pylist()[0]
    return {name: cut(value) if isinstance(value, str) else value for name, value in values.items()}


def cut(text: str) -> str:
    """The start of a text that may be long."""
    return text if len(text) <= _TEXT else text[:_TEXT] + " ..."
