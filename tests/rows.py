"""Rows as the stages make them, for tests of what comes after."""

from typing import Any

import pyarrow as pa

from pipeline.records import COMPLETED, DATA, ROUTED
from pipeline.stages.tables import with_columns
from tests.job import ANSWER

ROUTE = {
    "tokens": [1],
    "mixture": "base",
    "route_score": 0.5,
    "route_confidence": 0.5,
    "fallback": False,
    "last_assistant": False,
}
"""The values of `records.ROUTED` of a prompt for the base model."""

DATA_ROW = {
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "mixture": "base",
    "finish_reason": "stop",
    "fallback": False,
    "last_assistant": False,
}
"""Values of `records.DATA`, besides id and output."""


def answered(table: pa.Table, **changes: Any) -> pa.Table:
    """A staged table with the same route and answer in each row: `ROUTE` and `ANSWER`, with some changes."""
    for schema, values in ((ROUTED, ROUTE), (COMPLETED, ANSWER)):
        columns = {name: [changes.get(name, value)] * table.num_rows for name, value in values.items()}
        table = with_columns(table, schema, columns)
    return table


def data_of(rows: list[int]) -> pa.Table:
    """Rows of `records.DATA` with the ids ``r0``, ``r1``, ..."""
    values = {"output": "o", "finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 2}
    route = {"adapters": ["a"], "weights": [1.0], "mixture": "a:1.0", "route_score": 0.5}
    return pa.Table.from_pylist([DATA_ROW | values | route | {"id": f"r{row}"} for row in rows], schema=DATA)
