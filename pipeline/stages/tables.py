"""Helpers for the Arrow tables that travel between the stages."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.records import DEAD_LETTER, DeadLetter, Prompt
from pipeline.storage.types.values import loads


def with_columns(table: pa.Table, schema: pa.Schema, columns: Mapping[str, list[Any]]) -> pa.Table:
    """Append columns, each with its type from ``schema``: Arrow cannot infer the type of a column of nulls."""
    for field in schema:
        table = table.append_column(field, pa.array(columns[field.name], field.type))
    return table


def with_dead_letters(table: pa.Table, dead: Mapping[int, DeadLetter]) -> pa.Table:
    """Set the column `dead` of some rows, given by their index in the table."""
    if not dead:
        return table
    values = [vars(dead[i]) if i in dead else value for i, value in enumerate(table["dead"].to_pylist())]
    return table.set_column(table.schema.get_field_index("dead"), "dead", pa.array(values, DEAD_LETTER))


def prompts_of(table: pa.Table) -> list[Prompt]:
    """Return the prompt text or the conversation of each row; empty text if it has neither."""
    pairs = zip(table["prompt"].to_pylist(), table["messages"].to_pylist(), strict=True)
    return [loads(messages) if messages is not None else prompt or "" for prompt, messages in pairs]
