"""Turn the values of a row into a record: its id, its prompt, and the passed-through columns."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.types as kinds

from pipeline.conversations import (
    Layout,
    are_turns,
    arrange,
    consumed_columns,
    hint,
    json_value,
    messages_in_text,
    read_arguments,
    read_messages,
    read_tools,
    without_nulls,
)
from pipeline.errors import UserError
from pipeline.exact_json import dumps
from pipeline.records import Conversation, DeadLetter, Prompt, Record
from pipeline.storage.store.redact import masked

from .formats import InputRow
from .limits import MAX_DEPTH, is_deeper

_T = TypeVar("_T")
_ID_TYPES = (kinds.is_string, kinds.is_integer, kinds.is_decimal)
_PROMPT_TYPES = (kinds.is_string, kinds.is_nested)  # or a list of messages


@dataclass(frozen=True)
class Columns:
    """Names of the columns that have a meaning; all others are passed through.

    ``sampling`` (settings of the record), ``choices`` (the texts to choose the answer from), and the ``tools`` and
    ``template`` arguments of a conversation are passed through too, because the answer depends on them. None: there is
    no such column. ``layout``: of the rows, before `arranged` makes them columns. ``is_chat``: prompts that are text go
    through the chat template too, with these arguments.
    """

    id: str = "id"
    prompt: str = "prompt"
    messages: str = "messages"
    sampling: str | None = None
    choices: str | None = None
    layout: Layout = "columns"
    tools: str | None = "tools"
    template: str | None = "chat_template_kwargs"
    is_chat: bool = False

    def arranged(self, row: InputRow) -> InputRow:
        """A row of the input, of any layout, as columns of a record; the other methods take such rows."""
        if row.values is None:
            return row
        if self.layout == "columns":
            try:
                messages = messages_in_text(row.values.get(self.prompt)) if row.is_text else None
            except ValueError as error:
                return replace(row, dead=_refused("BadPrompt", f"column {self.prompt!r}: {error}"))
            return row if messages is None else replace(row, values=row.values | {self.prompt: messages})
        # A struct has all keys in every row.
        given = without_nulls(row.values) if row.cells and self.layout == "openai_batch" else row.values
        values, problem = arrange(self.layout, given, self.prompt, self.messages)
        dead = row.dead or (_refused("BadRequest", problem) if problem else None)
        raw = row_text(row.values) if problem else row.raw  # what was arranged may lack the part that is wrong
        # A request has other columns than its file.
        return replace(
            row, values=values, dead=dead, raw=raw, cells=None if self.layout == "openai_batch" else row.cells
        )

    def passed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The passed-through columns of a row."""
        taken = (self.id, self.prompt, self.messages, *consumed_columns(self.layout))
        return {k: v for k, v in values.items() if k not in taken}

    def has_prompt(self, row: InputRow) -> bool:
        """Whether a row has a value that is meant as its prompt, good or bad."""
        values = row.values or {}
        has_messages = values.get(self.messages) is not None and not self.turns(values)
        has_value = values.get(self.prompt) is not None or has_messages
        return has_value or (row.dead is not None and row.values is not None)  # a request that is no good

    def turns(self, values: dict[str, Any]) -> str | None:
        """The column of messages if it holds turns of ShareGPT, which this layout does not read."""
        return self.messages if self.layout == "columns" and are_turns(values.get(self.messages)) else None

    def record(self, index: int, row: InputRow) -> Record:
        """The record of a row, with a dead letter if it cannot be answered. ``index``: of the row in its window."""
        if row.values is None:
            return Record(index, content_hash(row.raw), raw=row.raw, dead=row.dead)
        values = row.values
        bad_id = self.bad_id(values)
        prompt, bad_prompt = (None, bad_id) if bad_id else self.read_prompt(values)
        sampling, bad_settings = self._settings(values, has_all_keys=row.cells is not None)
        dead = row.dead or bad_prompt or bad_settings
        raw = (row.raw or row_text(values)) if dead else None
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

    def bad_id(self, values: dict[str, Any]) -> DeadLetter | None:
        """Why the value in the column of ids is none; None if it is one, or if there is none."""
        given_id = values.get(self.id)
        if given_id is not None and not _is_id(given_id):
            kind = type(given_id).__name__
            return _refused("BadId", f"column {self.id!r} holds a {kind}, not text or a whole number")
        return None

    def read_prompt(self, values: dict[str, Any]) -> tuple[Prompt | None, DeadLetter | None]:
        """The prompt of a row, a text or a conversation, or why it has none."""
        prompt, messages = values.get(self.prompt), values.get(self.messages)
        if prompt is None and messages is None:
            message = f"neither {self.prompt!r} nor {self.messages!r} has a value; {hint(list(values), self.layout)}"
            return None, _refused("MissingPrompt", message)
        if isinstance(prompt, str) and prompt.strip():
            has_arguments = self.is_chat and any(values.get(name) for name in (self.tools, self.template) if name)
            return self._with_arguments(prompt, values) if has_arguments else (prompt, None)
        has_prompt = prompt is not None and not (isinstance(prompt, str) and messages)
        name, kind = (self.prompt, "BadPrompt") if has_prompt else (self.messages, "BadMessages")
        if isinstance(prompt, str) and has_prompt:
            return None, _refused(kind, f"column {name!r} is empty")
        if has_prompt and not isinstance(prompt, list):
            return None, _refused(kind, f"column {name!r} holds a {type(prompt).__name__}, not text or messages")
        try:
            return self._conversation(prompt if has_prompt else json_value(messages), name, values), None
        except ValueError as error:
            turns = None if has_prompt else self.turns(values)
            return None, _refused(kind, hint([], self.layout, turns) if turns else str(error))

    def _with_arguments(self, prompt: str, values: dict[str, Any]) -> tuple[Prompt | None, DeadLetter | None]:
        try:
            found = self._conversation([{"role": "user", "content": prompt}], self.prompt, values)
        except ValueError as error:
            return None, _refused("BadPrompt", str(error))
        return found if found.template else prompt, None

    def _conversation(self, messages: Any, name: str, values: dict[str, Any]) -> Conversation:
        """The messages of column ``name`` with their arguments of the template; `ValueError` names what is wrong."""
        tools = json_value(values.get(self.tools)) if self.tools else None
        arguments = json_value(values.get(self.template)) if self.template else None
        if is_deeper([messages, tools, arguments], MAX_DEPTH):  # JSON text was not checked with the row
            raise ValueError(f"column {name!r}: the conversation is nested deeper than {MAX_DEPTH} levels")
        found = _read(name, read_messages, messages)
        template = _read(self.template, read_arguments, arguments) if arguments is not None else {}
        if tools:
            template["tools"] = _read(self.tools, read_tools, tools)
        return Conversation(found, template)

    def _settings(self, values: dict[str, Any], has_all_keys: bool) -> tuple[dict[str, Any] | None, DeadLetter | None]:
        """The record's own sampling settings; their names and values are checked by the generate stage.

        ``has_all_keys``: objects are structs, whose keys are null where a row has none: also within a JSON schema.
        """
        given = values.get(self.sampling) if self.sampling else None
        sampling = json_value(without_nulls(given) if has_all_keys else given)
        choices = json_value(values.get(self.choices)) if self.choices else None
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
    """A row as canonical JSON, the same for each order of its columns; see `exact_json.dumps`."""
    return dumps(values, sort_keys=True)


def record_text(record: Record) -> str:
    """The text of a record for its dead letter: the start of an unreadable line, or the record as JSON."""
    if record.raw is not None:
        return record.raw
    prompt = record.prompt
    given = {"messages": prompt.messages} if isinstance(prompt, Conversation) else {"prompt": prompt}
    return row_text({"id": record.id, **given, **record.passed})


def _is_id(value: Any) -> bool:
    if isinstance(value, Decimal):
        return value == value.to_integral_value()
    return isinstance(value, (str, int)) and not isinstance(value, bool)


def _read(column: str | None, read: Callable[[Any], _T], value: Any) -> _T:
    try:
        return read(value)
    except ValueError as error:
        raise ValueError(f"column {column!r}: {error}") from None


def _refused(error_type: str, message: str) -> DeadLetter:
    return DeadLetter("read", error_type, message)
