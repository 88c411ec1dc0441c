"""A record's own sampling settings: plain values, as JSON has them, over the settings of all."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from .request import Constraint, Sampling

MOST_ANSWERS = 128
LEAST_PENALTY, MOST_PENALTY = 0.01, 100.0  # of repetition; in fp32 a logit divided by less may be infinite
MOST_LOGPROBS = 20  # as in vLLM and the OpenAI API: each is a column entry for each token
# Names of the OpenAI API and of vLLM for what the config calls otherwise.
_ALIASES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
_CONSTRAINTS = get_args(Constraint.__dataclass_fields__["kind"].type)


@dataclass(frozen=True)
class _Kind:
    """What a value must be: ``read`` gives it as `Sampling` has it, or None where it is something else."""

    words: str
    read: Callable[[Any], Any]


def overridden(base: Sampling, values: Mapping[str, Any]) -> Sampling:
    """``base`` with the settings of a record; null is the same as absent.

    Names are those of `Sampling`, and of the OpenAI API. A record that names ``choices`` or one of ``json_schema``,
    ``regex``, ``grammar`` replaces whichever of them ``base`` has. `ValueError` with one line for what is wrong.
    """
    given: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            continue
        field = _ALIASES.get(name, name)
        if field not in _KINDS:
            raise ValueError(f"unknown setting {name[:60]!r}; there are {', '.join([*_KINDS, *_ALIASES])}")
        if field in given:
            raise ValueError(f"{name!r} is given twice, by another name too")
        given[field] = _KINDS[field].read(value)
        if given[field] is None:
            raise ValueError(f"{name!r} must be {_KINDS[field].words}, not {_shown(value)}")
    sampling = replace(base, **_constrained(given))
    problem = sampling_problem(sampling)
    if problem:
        raise ValueError(problem)
    return sampling


def sampling_problem(sampling: Sampling) -> str | None:
    """Why some settings do not go together, in one line; None where they do."""
    if sampling.min_new_tokens > sampling.max_new_tokens:
        return f"min_new_tokens={sampling.min_new_tokens} is more than max_new_tokens={sampling.max_new_tokens}"
    if sampling.n > 1 and not sampling.draws:
        return f"n={sampling.n} needs a temperature above 0: all greedy answers are the same"
    if sampling.choices and sampling.constraint:
        return f"choices do not go together with {sampling.constraint.kind}"
    if len(set(sampling.choices)) < len(sampling.choices) or "" in sampling.choices:
        return "choices: one is empty or given twice"
    if sampling.constraint and sampling.min_new_tokens:
        return f"min_new_tokens does not go together with {sampling.constraint.kind}, which says where an answer ends"
    return None


def schema_text(schema: Any) -> str:
    """A JSON schema as the text of a `Constraint`; properties stay in their order, in which they are generated."""
    return json.dumps(schema, ensure_ascii=False)


def _constrained(given: dict[str, Any]) -> dict[str, Any]:
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


def _number(words: str, fits: Callable[[float], bool]) -> _Kind:
    def read(value: Any) -> float | None:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and fits(value)
        return float(value) if good else None

    return _Kind(f"a number {words}", read)


def _whole(words: str, least: float, most: float = 2**31) -> _Kind:
    def read(value: Any) -> int | None:
        # Parquet and pandas turn whole numbers with gaps between them into floating point.
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        return int(value) if whole and not isinstance(value, bool) and least <= value <= most else None

    return _Kind(f"a whole number {words}".rstrip(), read)


def _list(of: type, words: str) -> _Kind:
    def read(value: Any) -> tuple[Any, ...] | None:
        values = [value] if isinstance(value, of) else value
        if not isinstance(values, (list, tuple)) or any(type(v) is not of or v == "" for v in values):
            return None
        return tuple(values)

    return _Kind(words, read)


def _schema(value: Any) -> str | None:
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        return schema_text(parsed) if isinstance(parsed, (dict, bool)) else None
    except (ValueError, RecursionError):  # no JSON, or nested without end
        return None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _some(kind: _Kind) -> _Kind:
    return _Kind(kind.words, lambda value: kind.read(value) or None)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


_KINDS = {
    "max_new_tokens": _whole("from 1", 1),
    "min_new_tokens": _whole("from 0", 0),
    "temperature": _number("from 0", lambda x: x >= 0),
    "top_p": _number("above 0 and up to 1", lambda x: 0 < x <= 1),
    "top_k": _whole("from 0 (all tokens)", 0),
    "min_p": _number("from 0 to 1", lambda x: 0 <= x <= 1),
    "repetition_penalty": _number(
        f"from {LEAST_PENALTY:g} to {MOST_PENALTY:g}", lambda x: LEAST_PENALTY <= x <= MOST_PENALTY
    ),
    "presence_penalty": _number("from -2 to 2", lambda x: -2 <= x <= 2),
    "frequency_penalty": _number("from -2 to 2", lambda x: -2 <= x <= 2),
    "stop": _list(str, "text or a list of texts, none empty"),
    "stop_token_ids": _list(int, "a list of token ids"),
    "n": _whole(f"from 1 to {MOST_ANSWERS}", 1, MOST_ANSWERS),
    "logprobs": _whole(f"from 0 to {MOST_LOGPROBS}", 0, MOST_LOGPROBS),
    "seed": _whole("", -(2**63), 2**64),
    "choices": _some(_list(str, "a list of texts, none empty")),
    "json_schema": _Kind("a JSON schema: an object, or its text", _schema),
    "regex": _Kind("text", _text),
    "grammar": _Kind("the text of a Lark grammar", _text),
}
