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
    """One input record; ``row`` counts from the start of its window and is its identity within the run."""

    row: int
    id: str
    prompt: Prompt | None = None
    passed: dict[str, Any] = field(default_factory=dict)
    raw: str | None = None
    dead: DeadLetter | None = None


@dataclass(frozen=True)
class Completion:
    """What the engine answers: text, why it ended (``stop | length``), and token counts.

    ``sentences``: those that were routed while they were generated, so not the first; tokens count from the prompt's.
    """

    output: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    sentences: Spans = ()


# Columns between the stages. `in.` marks passed-through columns: input may use any name.
PASSED = "in."
STAGED = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("messages", pa.string()),  # as JSON, where the record has no prompt
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
    ]
)


def span_rows(spans: Spans) -> list[dict[str, Any]]:
    """Spans as a value of the Arrow type `SPANS`."""
    return [{"start": start, "mixture": mixture.key} for start, mixture in spans]


def parse_spans(rows: list[dict[str, Any]]) -> Spans:
    """Inverse of `span_rows`."""
    return tuple((row["start"], Mixture.parse(row["mixture"])) for row in rows)


def joined(*schemas: pa.Schema) -> pa.Schema:
    """One schema of the fields of several, in order."""
    return pa.schema([f for schema in schemas for f in schema])
