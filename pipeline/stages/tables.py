"""Helpers for the Arrow tables that travel between the stages."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from pipeline.exact_json import loads
from pipeline.records import DEAD_LETTER, Conversation, DeadLetter, Prompt


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
    columns = (table[name].to_pylist() for name in ("prompt", "messages", "template"))
    return [prompt_of(*values) for values in zip(*columns, strict=True)]


def prompt_of(prompt: str | None, messages: str | None, template: str | None) -> Prompt:
    """Return the prompt that the columns of a staged row hold; empty text if it has none."""
    if messages is None:
        return prompt or ""
    return Conversation(loads(messages), {} if template is None else loads(template))
