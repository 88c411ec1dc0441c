"""The stages as callable classes over batches of any form, for graphs of one's own: `ds.map_batches(Generate, ...)`."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from conf.generate import load_config

from .from_config import job_settings
from .job.preflight import check_models
from .records import DATA, SENTENCE_MIXTURES, Mixture, Record, joined
from .routing import Explanation, explain
from .stages.commit import output_names
from .stages.generate import GenerateRecords
from .stages.route import RouteRecords
from .storage.input.formats import InputRow
from .storage.input.formats.openai_batch import as_record
from .storage.input.read import staged_table

Batch = Any
"""An Arrow table, columns of arrays (numpy), a pandas frame, or a list of dicts: what `map_batches` may give."""

_CLASSES = pa.list_(pa.struct([("adapter", pa.string()), ("probability", pa.float32())]))
_ROUTES = pa.schema(
    [
        ("id", pa.string()),
        ("adapters", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float32())),
        ("mixture", pa.string()),
        ("route_score", pa.float32()),
        ("fallback", pa.bool_()),
        ("prompt_tokens", pa.int32()),
        ("top_classes", _CLASSES),
    ]
)
_ERROR = pa.schema([("error", pa.string())])


class Route:
    """Gives each record of a batch its mixture, without answering it.

    ``config``: words as the command takes them, ``["bank=custom", "bank.path=my/bank", ...]``. Raises `UserError` where
    it is wrong, or model, bank and router do not fit each other.
    """

    def __init__(self, config: Sequence[str] = ()) -> None:
        self.config = load_config(list(config))
        self.settings = job_settings(self.config, "", "")
        self.context, _ = check_models(self.settings)
        self._route = RouteRecords(self.settings, self.context)

    def __call__(self, batch: Batch) -> pa.Table:
        """The batch with the columns `id`, `adapters`, `weights`, `mixture`, `route_score`, `fallback`,
        `prompt_tokens`, `top_classes` (null where sentences are routed one by one) and `error` (null, or why it was
        refused).

        Columns of the batch that have such a name become ``input_<name>``. Rows keep their order.
        """
        table = as_table(batch)
        routed = self._routed(table)
        alive = routed.filter(routed["dead_stage"].is_null())
        reasons = iter(explain(self._route.router, alive["tokens"].to_pylist(), self.settings.routing))
        dead = routed["dead_stage"].to_pylist()
        tokens = routed["tokens"].to_pylist()
        classes = [None if d or self.settings.sentences else _classes(next(reasons)) for d in dead]
        made: dict[str, list[Any]] = {
            "prompt_tokens": [None if t is None else len(t) for t in tokens],
            "top_classes": classes,
        }
        return _beside(table, routed, joined(_ROUTES, _ERROR), made)

    def _routed(self, table: pa.Table) -> pa.Table:
        columns, rows = self.settings.columns, [InputRow(values) for values in table.to_pylist()]
        if columns.layout == "openai_batch":
            rows = [as_record(row) for row in rows]
        records: list[Record] = [columns.record(place, row) for place, row in enumerate(rows)]
        return self._route(staged_table(records, pa.schema([])))


class Generate(Route):
    """Answers each record of a batch with its own mixture; one engine, loaded once.

    ``device``: ``cuda`` or ``cpu`` (default: a GPU where this process sees one); ``threads``: of a CPU.
    """

    def __init__(self, config: Sequence[str] = (), device: str | None = None, threads: int = 0) -> None:
        super().__init__(config)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        threads = threads or self.config.engine.threads or os.cpu_count() or 1
        self._generate = GenerateRecords(self.settings, device, threads)
        more = [SENTENCE_MIXTURES] if self.settings.sentences else []
        self._schema = joined(DATA, *more, self.settings.asked, _ERROR)

    def __call__(self, batch: Batch) -> pa.Table:
        """The batch with the columns of `records.DATA` (and of `records.ASKED` where the config may ask for them) and
        `error` (null, or why there is no answer).

        Columns of the batch that have such a name become ``input_<name>``. Rows keep their order.
        """
        table = as_table(batch)
        if not table.num_rows:
            return _beside(table, None, self._schema, {})
        return _beside(table, self._generate(self._routed(table)), self._schema, {})


def _classes(reason: Explanation) -> list[dict[str, Any]]:
    return [{"adapter": adapter, "probability": probability} for adapter, probability in reason.classes]


def as_table(batch: Batch) -> pa.Table:
    """A batch of any form as an Arrow table."""
    if isinstance(batch, pa.Table):
        return batch
    if isinstance(batch, Mapping):
        return pa.table({name: pa.array(_plain(values)) for name, values in batch.items()})
    if hasattr(batch, "iloc"):
        return pa.Table.from_pandas(batch, preserve_index=False)
    names = list(dict.fromkeys(name for row in batch for name in row))
    return pa.table({name: pa.array([row.get(name) for row in batch]) for name in names})


def _plain(values: Any) -> Any:
    """Values of a column without numpy inside, which Arrow takes for one type only."""
    if isinstance(values, np.ndarray) and values.dtype != object and values.ndim == 1:
        return values
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in values]


def _beside(table: pa.Table, done: pa.Table | None, schema: pa.Schema, made: dict[str, list[Any]]) -> pa.Table:
    """The input's columns, those that were made beside them."""
    taken = set(schema.names)
    names = output_names(pa.schema([f for f in table.schema if f.name != "id"]), taken)
    kept = table.select(list(names)).rename_columns(list(names.values()))
    if done is None:
        return pa.Table.from_batches([], joined(schema, kept.schema))
    mixtures = [Mixture.parse(key) if key else None for key in done["mixture"].to_pylist()]
    errors = zip(done["dead_type"].to_pylist(), done["dead_message"].to_pylist(), strict=True)
    made |= {
        "adapters": [None if m is None else m.adapters for m in mixtures],
        "weights": [None if m is None else m.weights for m in mixtures],
        "mixture": [None if m is None else m.key for m in mixtures],
        "error": [None if kind is None else f"{kind}: {message}" for kind, message in errors],
    }
    arrays = [pa.array(made[f.name], f.type) if f.name in made else done[f.name].cast(f.type) for f in schema]
    return pa.Table.from_arrays([*arrays, *kept.columns], schema=joined(schema, kept.schema))
