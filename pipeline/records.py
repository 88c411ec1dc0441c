"""The types that every part shares: what a record is, which mixture answers it, what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa

Message = dict[str, Any]
Prompt = str | list[Message]


@dataclass(frozen=True)
class Mixture:
    """Weights of the adapters that answer a record together; empty: the base model alone.

    Adapters are held sorted by name and without zero weights, so that equal mixtures are equal objects with one
    `key`. Weights are multiples of one step and sum to exactly 1 (`routing.top_p` makes them so).
    """

    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    @staticmethod
    def of(weights: Mapping[str, float]) -> "Mixture":
        """The mixture of a mapping from adapter name to weight."""
        kept = sorted((name, float(weight)) for name, weight in weights.items() if weight)
        return Mixture(tuple(name for name, _ in kept), tuple(weight for _, weight in kept))

    @cached_property
    def key(self) -> str:
        """Canonical text, ``name:weight`` joined by ``+``; names are percent-encoded. The base model is ``base``."""
        if not self.adapters:
            return "base"
        pairs = zip(self.adapters, self.weights, strict=True)
        return "+".join(f"{quote(name, safe='')}:{weight!r}" for name, weight in pairs)

    @staticmethod
    def parse(key: str) -> "Mixture":
        """Inverse of `key`."""
        if key == "base":
            return Mixture()
        pairs = [part.rsplit(":", 1) for part in key.split("+")]
        return Mixture(tuple(unquote(name) for name, _ in pairs), tuple(float(weight) for _, weight in pairs))


Spans = tuple[tuple[int, Mixture], ...]
"""Mixtures sentence by sentence: (first token, mixture); each goes on to the next one's first token."""


@dataclass(frozen=True)
class DeadLetter:
    """Why a record was not answered: the stage that refused it, a short error type, and one line for people."""

    stage: str
    error_type: str
    message: str


@dataclass(frozen=True)
class Record:
    """One input record; ``row`` counts from the start of its window and is its identity within the run.

    ``sampling``: settings of its own, by name, not checked yet.
    """

    row: int
    id: str
    prompt: Prompt | None = None
    passed: dict[str, Any] = field(default_factory=dict)
    raw: str | None = None
    dead: DeadLetter | None = None
    sampling: dict[str, Any] | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer and its natural log probability; ``top``: the most likely tokens of the same step."""

    token_id: int
    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True)
class Completion:
    """What the engine answers: text, why it ended (``stop | length | choice``), and token counts.

    ``sentences``: those that were routed while they were generated, so not the first; tokens count from the prompt's.
    ``logprobs``: of each token, where they were asked for. ``answers``: all answers, this one first, where several were
    asked for. ``choice_log_likelihoods``: of each choice, where the answer is one of some choices.
    """

    output: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    sentences: Spans = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    answers: tuple["Completion", ...] = ()
    choice_log_likelihoods: tuple[float, ...] | None = None


# Columns between the stages. `in.` marks passed-through columns: input may use any name.
PASSED = "in."
STAGED = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("messages", pa.string()),  # as JSON, where the record has no prompt
        ("sampling", pa.string()),  # the record's own settings, as a JSON object
        ("raw", pa.string()),  # the line, where it could not be parsed
        ("dead_stage", pa.string()),
        ("dead_type", pa.string()),
        ("dead_message", pa.string()),
    ]
)
ROUTED = pa.schema(
    [
        ("tokens", pa.list_(pa.int32())),
        ("mixture", pa.string()),
        ("route_score", pa.float32()),
        ("fallback", pa.bool_()),
    ]
)
SPANS = pa.list_(pa.struct([("start", pa.int32()), ("mixture", pa.string())]))
# What the route stage adds where sentences are routed one by one, and what comes of it in the output.
SENTENCES = pa.schema([("spans", SPANS), ("context", pa.int32())])
SENTENCE_MIXTURES = pa.schema([("sentence_mixtures", SPANS)])
COMPLETED = pa.schema(
    [
        ("output", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
    ]
)
# What the generate stage adds where the settings, or those of a record, may ask for it; else null.
_TOP = [("token_id", pa.int32()), ("token", pa.string()), ("logprob", pa.float32())]
LOGPROBS = pa.list_(pa.struct([*_TOP, ("top_logprobs", pa.list_(pa.struct(_TOP)))]))
OUTPUTS = pa.list_(
    pa.struct(
        [
            ("output", pa.string()),
            ("finish_reason", pa.string()),
            ("completion_tokens", pa.int32()),
            ("logprobs", LOGPROBS),
        ]
    )
)
ASKED = pa.schema([("outputs", OUTPUTS), ("logprobs", LOGPROBS), ("choice_log_likelihoods", pa.list_(pa.float64()))])

# Columns of the output, before and after the passed-through ones.
DATA = pa.schema(
    [
        ("id", pa.string()),
        ("output", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("adapters", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float32())),
        ("mixture", pa.string()),
        ("route_score", pa.float32()),
        ("fallback", pa.bool_()),
    ]
)
PROVENANCE = pa.schema([("router_fingerprint", pa.string()), ("bank_fingerprint", pa.string())])
DEAD = pa.schema(
    [
        ("id", pa.string()),
        ("stage", pa.string()),
        ("error_type", pa.string()),
        ("message", pa.string()),
        ("record", pa.string()),
        ("row", pa.int64()),
    ]
)


def span_rows(spans: Spans) -> list[dict[str, Any]]:
    """Spans as a value of the Arrow type `SPANS`."""
    return [{"start": start, "mixture": mixture.key} for start, mixture in spans]


def parse_spans(rows: list[dict[str, Any]]) -> Spans:
    """Inverse of `span_rows`."""
    return tuple((row["start"], Mixture.parse(row["mixture"])) for row in rows)


def logprob_rows(logprobs: tuple[TokenLogprob, ...] | None) -> list[dict[str, Any]] | None:
    """Log probabilities as a value of the Arrow type `LOGPROBS`."""
    if logprobs is None:
        return None
    return [_logprob_row(t) | {"top_logprobs": [_logprob_row(other) for other in t.top]} for t in logprobs]


def output_rows(answers: tuple[Completion, ...]) -> list[dict[str, Any]] | None:
    """Several answers as a value of the Arrow type `OUTPUTS`; null where there is one."""
    return [
        {
            "output": a.output,
            "finish_reason": a.finish_reason,
            "completion_tokens": a.completion_tokens,
            "logprobs": logprob_rows(a.logprobs),
        }
        for a in answers
    ] or None


def _logprob_row(token: TokenLogprob) -> dict[str, Any]:
    return {"token_id": token.token_id, "token": token.token, "logprob": token.logprob}


def joined(*schemas: pa.Schema) -> pa.Schema:
    """One schema of the fields of several, in order."""
    return pa.schema([f for schema in schemas for f in schema])
