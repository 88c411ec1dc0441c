"""Callable classes over batches of any form, for Ray pipelines of other authors: `ds.map_batches(Generate, ...)`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from conf.generate import load_config
from conf.schema import GenerateConfig

from .auto_engine import any_engine, choose_engine
from .from_config import job_settings
from .job.preflight import check_models
from .records import DATA, Mixture, Record, concat_schemas
from .routing.explanations import Explanation, explain
from .stages.generate import GenerateRecords
from .stages.output_schema import output_names
from .stages.route import RouteRecords
from .storage.input.formats import InputRow
from .storage.input.formats.typed import plain_schema, rows_of
from .storage.input.read import staged_table
from .storage.input.schema import SchemaFinder, passed_table

Batch = Any
"""A batch as `map_batches` may give it: an Arrow table, a dict of numpy arrays, a pandas frame, or a list of dicts."""

TOP_CLASSES = pa.schema(
    [("top_classes", pa.list_(pa.struct([("adapter", pa.string()), ("probability", pa.float32())])))]
)
ROUTES = pa.schema(
    [
        ("id", pa.string()),
        ("adapters", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float32())),
        ("mixture", pa.string()),
        ("route_score", pa.float32()),
        ("route_confidence", pa.float32()),
        ("fallback", pa.bool_()),
        ("prompt_tokens", pa.int32()),
    ]
)
_ERROR = pa.schema([("error", pa.string())])


class Route:
    """Routes each record of a batch to its mixture, without answering it.

    ``config``: words as on the command line, ``["bank=custom", "bank.path=my/bank", ...]``. Raises `UserError` if it is
    wrong, or if model, bank and router do not fit each other.
    """

    def __init__(self, config: Sequence[str] = ()) -> None:
        self._prepare(any_engine(config))

    def _prepare(self, config: GenerateConfig) -> None:
        self.config, self.settings = config, job_settings(config, "", "")
        checked = check_models(self.settings)
        self.context, self.settings = checked.context, self.settings.with_routing(checked.routing)
        self._route = RouteRecords(self.settings, self.context)

    def __call__(self, batch: Batch) -> pa.Table:
        """Add the columns of `ROUTES`, `top_classes` and `error`.

        `top_classes` is null if sentences or parts have mixtures of their own; `error` is null, or why a record was
        refused.

        Columns of the batch with such a name become ``input_<name>``. Rows keep their order.
        """
        table = as_table(batch)
        routed = self._routed(_rows(batch, table))
        tokens = routed["tokens"].to_pylist()
        whole = self._whole(routed)
        reasons = explain(self._route.router, [tokens[index] for index in whole], self.settings.routing)
        classes: list[Any] = [None] * len(tokens)
        for index, reason in zip(whole, reasons, strict=True):
            classes[index] = top_classes([reason])
        computed: dict[str, list[Any]] = {
            "prompt_tokens": [None if t is None else len(t) for t in tokens],
            "top_classes": classes,
        }
        return _with_results(table, routed, concat_schemas(ROUTES, TOP_CLASSES, _ERROR), computed)

    def _whole(self, routed: pa.Table) -> list[int]:
        """Return the indices of the rows for whose whole prompt one mixture was chosen."""
        if self.settings.sentences:
            return []
        is_whole = routed["dead"].is_null()
        if self.settings.parts:
            is_whole = pc.and_(is_whole, routed["prompt_parts"].is_null())
        return [index for index, whole in enumerate(is_whole.to_pylist()) if whole]

    def _routed(self, rows: Sequence[InputRow]) -> pa.Table:
        columns = self.settings.columns
        arranged = map(columns.arranged, rows)
        records: list[Record] = [columns.record(index, row) for index, row in enumerate(arranged)]
        return self._route(staged_table(records, pa.schema([])))


class Generate(Route):
    """Answers each record of a batch with its own mixture, with an engine that is loaded once.

    ``device``: ``cuda`` or ``cpu``; None takes a GPU if this process sees one. ``threads``: CPU threads, 0 for the
    config's number, or else all.
    """

    def __init__(self, config: Sequence[str] = (), device: str | None = None, threads: int = 0) -> None:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._prepare(choose_engine(config, load_config(config), gpus=device == "cuda").config)
        threads = threads or self.config.engine.threads or os.cpu_count() or 1
        self._generate = GenerateRecords(self.settings, device, threads)
        self._schema = concat_schemas(DATA, self.settings.divided_columns, self.settings.requested_columns, _ERROR)

    def __call__(self, batch: Batch) -> pa.Table:
        """Add the columns of `records.DATA`, further ones if the config asks for them, and `error`.

        ``error`` is null, or why there is no answer. Columns of the batch with such a name become ``input_<name>``.
        Rows keep their order.
        """
        table = as_table(batch)
        if not table.num_rows:
            return _with_results(table, None, self._schema, {})
        return _with_results(table, self._generate(self._routed(_rows(batch, table))), self._schema, {})


def top_classes(parts: Sequence[Explanation]) -> list[dict[str, Any]] | None:
    """Return the likeliest classes of a prompt as a value of `TOP_CLASSES`; None if it was cut into parts."""
    if len(parts) > 1:
        return None
    return [{"adapter": adapter, "probability": probability} for adapter, probability in parts[0].classes]


def as_table(batch: Batch) -> pa.Table:
    """Convert a batch of any form to an Arrow table."""
    if isinstance(batch, pa.Table):
        return batch
    if isinstance(batch, Mapping):
        return pa.table({name: pa.array(_without_numpy(values)) for name, values in batch.items()})
    if hasattr(batch, "iloc"):
        return pa.Table.from_pandas(batch, preserve_index=False)
    names = list(dict.fromkeys(name for row in batch for name in row))
    found = SchemaFinder()  # some values, such as contents of texts and of parts, have no common type
    found.add([{name: row.get(name) for name in names} for row in batch])
    return passed_table(list(batch), found.schema())


def _rows(batch: Batch, table: pa.Table) -> Sequence[InputRow]:
    """Return the rows of a batch: a list's own, since a table gives nested values other forms."""
    if isinstance(batch, list):
        return [InputRow(dict(values)) for values in batch]
    schema = plain_schema(table.schema, "the batch")
    return [row for part in table.to_batches() for row in rows_of(part, schema)]


def _without_numpy(values: Any) -> Any:
    """Convert arrays inside a column to lists: Arrow would give them all one type."""
    if isinstance(values, np.ndarray) and values.dtype != object and values.ndim == 1:
        return values
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


def _with_results(
    table: pa.Table, done: pa.Table | None, schema: pa.Schema, computed: dict[str, list[Any]]
) -> pa.Table:
    """Put the columns of ``schema``, from ``computed`` or else from ``done``, before the columns of the input."""
    names = output_names(pa.schema([f for f in table.schema if f.name != "id"]), set(schema.names))
    passed = table.select(list(names)).rename_columns(list(names.values()))
    if done is None:
        return pa.Table.from_batches([], concat_schemas(schema, passed.schema))
    mixtures = [Mixture.parse(key) if key else None for key in done["mixture"].to_pylist()]
    computed |= {
        "adapters": [None if m is None else m.adapters for m in mixtures],
        "weights": [None if m is None else m.weights for m in mixtures],
        "mixture": [None if m is None else m.key for m in mixtures],
        "error": [None if d is None else f"{d['error_type']}: {d['message']}" for d in done["dead"].to_pylist()],
    }
    arrays = [pa.array(computed[f.name], f.type) if f.name in computed else done[f.name].cast(f.type) for f in schema]
    return pa.Table.from_arrays([*arrays, *passed.columns], schema=concat_schemas(schema, passed.schema))
