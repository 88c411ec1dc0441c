"""Turn the values of a row into a record: its id, its prompt, and the passed-through columns."""

import hashlib
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.types as kinds

from pipeline.errors import UserError
from pipeline.records import DeadLetter, Prompt, Record
from pipeline.storage.store.redact import masked
from pipeline.storage.types.values import dumps, loads

from .formats import InputRow, Layout
from .limits import MAX_DEPTH, is_deeper

_ID_TYPES = (kinds.is_string, kinds.is_integer, kinds.is_decimal)
_PROMPT_TYPES = (kinds.is_string, kinds.is_nested)  # some layouts hold a list of messages


@dataclass(frozen=True)
class Columns:
    """Names of the columns that have a meaning; all others are passed through.

    ``sampling`` (settings of the record) and ``choices`` (the texts to choose the answer from) are passed through too,
    because the answer depends on them. None: there is no such column.
    """

    id: str = "id"
    prompt: str = "prompt"
    messages: str = "messages"
    sampling: str | None = None
    choices: str | None = None
    layout: Layout = "columns"

    def passed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The passed-through columns of a row."""
        return {k: v for k, v in values.items() if k not in (self.id, self.prompt, self.messages)}

    def record(self, index: int, row: InputRow) -> Record:
        """The record of a row, with a dead letter if it cannot be answered. ``index``: of the row in its window."""
        if row.values is None:
            return Record(index, content_hash(row.raw), raw=row.raw, dead=row.dead)
        values = row.values
        prompt, bad_prompt = self._prompt(values)
        sampling, bad_settings = self._settings(values)
        dead = row.dead or bad_prompt or bad_settings
        raw = row_text(values) if dead else None
        return Record(index, self.identity(row), prompt, self.passed(values), raw, dead, sampling, row.cells)

    def check_types(self, schema: pa.Schema, path: str) -> None:
        """Raise `UserError` for a file that states a type which no id, or no prompt, can have."""
        advice = "convert it, or name another column with input."
        problems = {
            self.prompt: (_PROMPT_TYPES, f"a prompt is text; {advice}prompt_column"),
            self.id: (_ID_TYPES, f"an id is text, a whole number or a UUID; {advice}id_column"),
        }
        for name, (fits, expected) in problems.items():
            kind = schema.field(name).type if name in schema.names else pa.null()
            if not kinds.is_null(kind) and not any(fit(kind) for fit in fits):
                raise UserError(f"input: {masked(path)}: the column {name!r} is of the type {kind}; {expected}")

    def identity(self, row: InputRow) -> str:
        """The id as the input gives it, or a hash of the whole row if it gives none."""
        given = self.given_id(row)
        return given if given is not None else content_hash(row.values if row.values is not None else row.raw)

    def given_id(self, row: InputRow) -> str | None:
        """The id as the input gives it, integers as text; None if there is none."""
        value = (row.values or {}).get(self.id)
        if not _is_id(value) or value == "":
            return None
        return id_text(value)

    def _prompt(self, values: dict[str, Any]) -> tuple[Prompt | None, DeadLetter | None]:
        given_id = values.get(self.id)
        if given_id is not None and not _is_id(given_id):
            kind = type(given_id).__name__
            return None, _refused("BadId", f"column {self.id!r} holds a {kind}, not text or a whole number")
        prompt, messages = values.get(self.prompt), values.get(self.messages)
        if prompt is None and messages is None:
            return None, _refused("MissingPrompt", f"neither {self.prompt!r} nor {self.messages!r} has a value")
        if prompt is not None:
            if isinstance(prompt, str) and prompt.strip():
                return prompt, None
            problem = "is empty" if isinstance(prompt, str) else f"holds a {type(prompt).__name__}, not text"
            return None, _refused("BadPrompt", f"column {self.prompt!r} {problem}")
        if isinstance(messages, list) and messages and all(map(_is_message, messages)):
            return messages, None
        return None, _refused("BadMessages", f"column {self.messages!r} is not a list of objects with role and content")

    def _settings(self, values: dict[str, Any]) -> tuple[dict[str, Any] | None, DeadLetter | None]:
        """The record's own sampling settings; their names and values are checked by the generate stage."""
        sampling = _parsed(values.get(self.sampling)) if self.sampling else None
        choices = _parsed(values.get(self.choices)) if self.choices else None
        if is_deeper([sampling, choices], MAX_DEPTH):  # given as JSON text, they were not checked with the row
            return None, _refused("BadSampling", f"the settings are nested deeper than {MAX_DEPTH} levels")
        if sampling is not None and not isinstance(sampling, dict):
            return None, _refused("BadSampling", f"column {self.sampling!r} is neither an object nor the JSON of one")
        if choices is None or choices == []:
            return sampling or None, None
        if not isinstance(choices, list) or any(not isinstance(c, str) or not c for c in choices):
            message = f"column {self.choices!r} is neither a list of texts (none empty) nor the JSON of one"
            return None, _refused("BadChoices", message)
        if (sampling or {}).get("choices") is not None:
            return None, _refused("BadChoices", f"columns {self.choices!r} and {self.sampling!r} both give choices")
        return {**(sampling or {}), "choices": choices}, None


def id_text(value: Any) -> str:
    """The text of an id: of a whole decimal without its fraction."""
    return str(int(value) if isinstance(value, Decimal) and _is_id(value) else value)


def content_hash(values: Any) -> str:
    """Hex digest (128 bits) of a row's content; the order of its columns does not matter."""
    return hashlib.blake2b(row_text(values).encode(), digest_size=16).hexdigest()


def row_text(values: Any) -> str:
    """A row as canonical JSON, the same for each order of its columns; see `types.values.dumps`."""
    return dumps(values, sort_keys=True)


def record_text(record: Record) -> str:
    """The text of a record for its dead letter: the start of an unreadable line, or the record as JSON."""
    if record.raw is not None:
        return record.raw
    prompt = {"prompt" if isinstance(record.prompt, str) else "messages": record.prompt}
    return row_text({"id": record.id, **prompt, **record.passed})


def _parsed(value: Any) -> Any:
    """The value; if it is text, as in CSV, the JSON in it. Empty text is None."""
    if not isinstance(value, str):
        return value
    try:
        return loads(value) if value.strip() else None
    except ValueError:
        return value


def _is_id(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and value.get("content") is not None


def _refused(error_type: str, message: str) -> DeadLetter:
    return DeadLetter("read", error_type, message)
