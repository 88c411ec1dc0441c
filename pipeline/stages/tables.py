"""Small helpers over the tables that travel between the stages."""

from collections.abc import Mapping
from typing import Any

import orjson
import pyarrow as pa

from pipeline.records import DeadLetter, Prompt

_DEAD = ("dead_stage", "dead_type", "dead_message")


def with_columns(table: pa.Table, schema: pa.Schema, columns: Mapping[str, list[Any]]) -> pa.Table:
    """Append columns, each with its type from ``schema``: a column of nulls would otherwise have no type."""
    for field in schema:
        table = table.append_column(field, pa.array(columns[field.name], field.type))
    return table


def with_dead_letters(table: pa.Table, dead: Mapping[int, DeadLetter]) -> pa.Table:
    """Mark rows (by place) as dead letters."""
    if not dead:
        return table
    columns = {name: table[name].to_pylist() for name in _DEAD}
    for row, letter in dead.items():
        for name, value in zip(_DEAD, (letter.stage, letter.error_type, letter.message), strict=True):
            columns[name][row] = value
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, pa.string()))
    return table


def prompts_of(table: pa.Table) -> list[Prompt]:
    """Prompt text or conversation of each row; empty text where there is neither."""
    pairs = zip(table["prompt"].to_pylist(), table["messages"].to_pylist(), strict=True)
    return [orjson.loads(messages) if messages is not None else prompt or "" for prompt, messages in pairs]
