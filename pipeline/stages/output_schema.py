"""Columns of the output files, and the tables that answered and dead records become."""

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from pipeline.records import DATA, DEAD, PASSED, PROMPT, PROVENANCE, DeadLetter, Mixture, Record, concat_schemas
from pipeline.storage.input.columns import record_text
from pipeline.storage.types.values import python_rows

from .tables import prompts_of


class OutputSchema:
    """The schema of the data files: the fixed columns, those passed through from the input, and provenance.

    ``router``, ``bank``: fingerprints. ``extra``: further columns that the generate stage makes. ``names``: the name in
    the output of each passed-through column.
    """

    def __init__(
        self, passed: pa.Schema, keep_prompt: bool, router: str, bank: str, extra: pa.Schema | None = None
    ) -> None:
        made = concat_schemas(PROMPT if keep_prompt else pa.schema([]), extra or pa.schema([]))
        self.names = output_names(passed, {*DATA.names, *PROVENANCE.names, *made.names})
        renamed = pa.schema([f.with_name(self.names[f.name]) for f in passed])
        self.data = concat_schemas(DATA, made, renamed, PROVENANCE)
        self._passed, self._keep_prompt, self._router, self._bank = passed, keep_prompt, router, bank

    def data_table(self, generated: pa.Table) -> pa.Table:
        """Return answered rows of a generated table with the columns of a data file."""
        mixtures = [Mixture.parse(key) for key in generated["mixture"].to_pylist()]
        made: dict[str, Any] = {
            "adapters": [m.adapters for m in mixtures],
            "weights": [m.weights for m in mixtures],
            "router_fingerprint": [self._router] * generated.num_rows,
            "bank_fingerprint": [self._bank] * generated.num_rows,
        }
        if self._keep_prompt:  # else `prompt` may be a passed-through column
            made |= {name: generated[name] for name in PROMPT.names}
        source = {new: PASSED + old for old, new in self.names.items()}
        arrays = [
            pa.array(made[f.name], f.type) if f.name in made else generated[source.get(f.name, f.name)]
            for f in self.data
        ]
        return pa.Table.from_arrays(arrays, schema=self.data)

    def dead_table(self, generated: pa.Table, first_row: int) -> pa.Table:
        """Return dead rows of a generated table as dead letters; ``first_row`` as in `dead_letters`."""
        arrays = [generated[PASSED + name] for name in self.names]
        passed = pa.Table.from_arrays(arrays, schema=self._passed)
        values = [{k: v for k, v in row.items() if v is not None} for row in python_rows(passed)]
        records = (
            Record(row, record_id, prompt, passed_values, raw, DeadLetter(**dead))
            for row, record_id, raw, dead, prompt, passed_values in zip(
                *(generated[name].to_pylist() for name in ("row", "id", "raw", "dead")),
                prompts_of(generated),
                values or [{}] * generated.num_rows,
                strict=True,
            )
        )
        return dead_letters(records, first_row)


def dead_letters(records: Iterable[Record], first_row: int) -> pa.Table:
    """Return dead records as a table of `records.DEAD`. ``first_row``: of their window, in the whole input."""
    rows = [{"id": r.id, **vars(r.dead), "record": record_text(r), "row": first_row + r.row} for r in records]
    return pa.Table.from_pylist(rows, schema=DEAD)


def output_names(passed: pa.Schema, taken: set[str]) -> dict[str, str]:
    """Return the output name of each passed-through column: its own, or `input_<name>` if that is ``taken``."""
    names = {f.name: f.name for f in passed if f.name not in taken}
    for f in passed:
        if f.name in taken:
            name = f"input_{f.name}"
            while name in taken or name in names.values():
                name = f"input_{name}"
            names[f.name] = name
    return {f.name: names[f.name] for f in passed}
