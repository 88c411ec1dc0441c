"""Apply a record's own sampling settings, as values of JSON, to the settings of the job."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from .request import Constraint, Sampling

MAX_ANSWERS = 128
MIN_PENALTY, MAX_PENALTY = 0.01, 100.0  # of repetition; in fp32 a logit divided by less may be infinite
MAX_LOGPROBS = 20  # as in vLLM and the OpenAI API: each is a column entry for each token
# Names in the OpenAI API and vLLM of settings that have another name in the config.
_ALIASES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
_CONSTRAINTS = get_args(Constraint.__dataclass_fields__["kind"].type)


_Field = tuple[str, Callable[[Any], Any]]
"""What a setting must be, and its parser: returns the value as `Sampling` has it, or None if it is invalid."""


def override_sampling(base: Sampling, values: Mapping[str, Any]) -> Sampling:
    """Return ``base`` with the settings of a record; null is the same as absent.

    Names are those of `Sampling` and of the OpenAI API. If a record sets ``choices``, ``json_schema``, ``regex`` or
    ``grammar``, it replaces any of these in ``base``. Raises `ValueError` with a message of one line.
    """
    given: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        field = _ALIASES.get(name, name)
        if field not in _FIELDS:
            raise ValueError(f"unknown setting {name[:60]!r}; there are {', '.join([*_FIELDS, *_ALIASES])}")
        try:
            parsed = parse_setting(field, value)
        except ValueError as error:
            raise ValueError(f"{name!r} {error}") from None
        if given.setdefault(field, parsed) != parsed:
            raise ValueError(f"{name!r} is given twice, by another name and with another value too")
    sampling = replace(base, **_merge_constraint(given))
    problem = sampling_problem(sampling)
    if problem:
        raise ValueError(problem)
    return sampling


def parse_setting(name: str, value: Any) -> Any:
    """Return the value of a setting as `Sampling` has it; `ValueError` with what it must be if it is invalid."""
    description, parse = _FIELDS[name]
    parsed = parse(value)
    if parsed is None:
        text = json.dumps(value, ensure_ascii=False, default=str)
        raise ValueError(f"must be {description}, not {text if len(text) <= 60 else f'{text[:57]}...'}")
    return parsed


def sampling_problem(sampling: Sampling) -> str | None:
    """Return why settings do not go together, in one line; None if they do."""
    if sampling.min_new_tokens > sampling.max_new_tokens:
        return f"min_new_tokens={sampling.min_new_tokens} is more than max_new_tokens={sampling.max_new_tokens}"
    if sampling.n > 1 and not sampling.is_random:
        return f"n={sampling.n} needs a temperature above 0: all greedy answers are the same"
    if sampling.choices and sampling.constraint:
        return f"choices do not go together with {sampling.constraint.kind}"
    if len(set(sampling.choices)) < len(sampling.choices) or "" in sampling.choices:
        return "choices: one is empty or given twice"
    if sampling.constraint and sampling.min_new_tokens:
        return f"min_new_tokens does not go together with {sampling.constraint.kind}, which says where an answer ends"
    return None


def schema_text(schema: Any) -> str:
    """Return a JSON schema as the text of a `Constraint`. Properties keep their order, in which they are generated."""
    return json.dumps(schema, ensure_ascii=False)


def _merge_constraint(given: dict[str, Any]) -> dict[str, Any]:
    named = [name for name in ("choices", *_CONSTRAINTS) if name in given]
    if len(named) > 1:
        raise ValueError(f"{' and '.join(named)} do not go together: give one of them")
    for name in named:
        if name != "choices":
            given["constraint"] = Constraint(name, given.pop(name))
            given["choices"] = ()
        else:
            given["constraint"] = None
    return given


def _number(description: str, is_valid: Callable[[float], bool]) -> _Field:
    def parse(value: Any) -> float | None:
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if is_number and is_valid(value) else None

    return f"a number {description}", parse


def _integer(description: str, minimum: float, maximum: float = 2**31) -> _Field:
    def parse(value: Any) -> int | None:
        # Parquet and pandas turn integer columns with nulls into floating point.
        is_integer = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(value) if is_integer and not isinstance(value, bool) and minimum <= value <= maximum else None

    return f"a whole number {description}".rstrip(), parse


def _list(of: type, description: str, is_empty_valid: bool = True) -> _Field:
    def parse(value: Any) -> tuple[Any, ...] | None:
        values = [value] if isinstance(value, of) else value
        if not isinstance(values, (list, tuple)) or any(type(v) is not of or v == "" for v in values):
            return None
        return tuple(values) if values or is_empty_valid else None

    return description, parse


def _parse_schema(value: Any) -> str | None:
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        return schema_text(parsed) if isinstance(parsed, (dict, bool)) else None
    except (ValueError, RecursionError):  # not JSON, or nested too deeply
        return None


def _parse_text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


_FIELDS: dict[str, _Field] = {
    "max_new_tokens": _integer("from 1", 1),
    "min_new_tokens": _integer("from 0", 0),
    "temperature": _number("from 0", lambda x: x >= 0),
    "top_p": _number("above 0 and up to 1", lambda x: 0 < x <= 1),
    "top_k": _integer("from 0 (all tokens)", 0),
    "min_p": _number("from 0 to 1", lambda x: 0 <= x <= 1),
    "repetition_penalty": _number(
        f"from {MIN_PENALTY:g} to {MAX_PENALTY:g}", lambda x: MIN_PENALTY <= x <= MAX_PENALTY
    ),
    "presence_penalty": _number("from -2 to 2", lambda x: -2 <= x <= 2),
    "frequency_penalty": _number("from -2 to 2", lambda x: -2 <= x <= 2),
    "stop": _list(str, "text or a list of texts, none empty"),
    "stop_token_ids": _list(int, "a list of token ids"),
    "n": _integer(f"from 1 to {MAX_ANSWERS}", 1, MAX_ANSWERS),
    "logprobs": _integer(f"from 0 to {MAX_LOGPROBS}", 0, MAX_LOGPROBS),
    "seed": _integer("", -(2**63), 2**64),
    "choices": _list(str, "a list of texts, none empty", is_empty_valid=False),
    "json_schema": ("a JSON schema: an object, or its text", _parse_schema),
    "regex": ("text", _parse_text),
    "grammar": ("the text of a Lark grammar", _parse_text),
}
