"""The shared types: a record, the mixture that answers it, its completion or dead letter, and the Arrow schemas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote, unquote

import pyarrow as pa

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages for the chat template, as `conversations.read_messages` returns them.

    ``template``: further arguments of the template that belong to the record, such as ``tools``.
    """

    messages: list[Message]
    template: dict[str, Any] = field(default_factory=dict)

    @property
    def ends_with_assistant(self) -> bool:
        """Whether the last message is a turn of the assistant."""
        return bool(self.messages) and self.messages[-1].get("role") == "assistant"


Prompt = str | Conversation


@dataclass(frozen=True)
class Mixture:
    """Weights of the adapters that answer a record together; an empty mixture is the base model alone.

    Adapters are sorted by name and have no zero weights, so that equal mixtures are equal objects with one `key`. The
    router makes the weights multiples of one step that sum to exactly 1; those of a fallback are equal, 1/n each.
    """

    adapters: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()

    @staticmethod
    def of(weights: Mapping[str, float]) -> "Mixture":
        """Make the mixture of a mapping from adapter name to weight."""
        nonzero = sorted((name, float(weight)) for name, weight in weights.items() if weight)
        return Mixture(tuple(name for name, _ in nonzero), tuple(weight for _, weight in nonzero))

    @staticmethod
    def mean(mixtures: Sequence["Mixture"]) -> "Mixture":
        """Return the mean of mixtures; adapters that a mixture lacks, as the base model lacks all, weigh zero there."""
        if len(set(mixtures)) == 1:
            return mixtures[0]
        weights: dict[str, float] = {}
        for mixture in mixtures:
            for name, weight in zip(mixture.adapters, mixture.weights, strict=True):
                weights[name] = weights.get(name, 0.0) + weight / len(mixtures)
        return Mixture.of(weights)

    @cached_property
    def key(self) -> str:
        """Canonical text: ``name:weight`` joined by ``+``, with percent-encoded names; ``base`` for the base model."""
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
"""The mixture of each sentence as (first token, mixture), in order; each span ends where the next one starts."""


@dataclass(frozen=True)
class DeadLetter:
    """Why a record was not answered: the stage that refused it, a short error type, and a message of one line."""

    stage: str
    error_type: str
    message: str


@dataclass(frozen=True)
class Cells:
    """The values of a row as Arrow has them: a row of a batch, which other rows share; ``size``: its bytes, about."""

    batch: pa.RecordBatch
    index: int
    size: int


@dataclass(frozen=True)
class Record:
    """One input record. ``row`` is its index in its window, and with it its identity within the run.

    ``passed``: values of the passed-through columns, and ``cells`` the exact ones if the input states types; ``raw``:
    the text of a record that has a dead letter; ``sampling``: the record's own settings by name, not checked yet.
    """

    row: int
    id: str
    prompt: Prompt | None = None
    passed: dict[str, Any] = field(default_factory=dict)
    raw: str | None = None
    dead: DeadLetter | None = None
    sampling: dict[str, Any] | None = None
    cells: Cells | None = field(default=None, compare=False)


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer and its natural log probability; ``top``: the most likely tokens of the same step."""

    token_id: int
    token: str
    logprob: float
    top: tuple["TokenLogprob", ...] = ()


@dataclass(frozen=True)
class Completion:
    """An answer of the engine: its text, its finish reason (``stop | length | choice``), and token counts.

    ``sentences``: sentences that were routed during generation, which excludes the first; tokens are counted from the
    start of the prompt. ``logprobs``: of each token, if requested. ``answers``: all answers, this one first, if several
    were requested. ``choice_log_likelihoods``: of each choice, if the answer is a choice; ``choice_margin``: how much
    more probable the likeliest is than the next one, among the choices. ``answer_logprob``: mean natural log
    probability of the answer's tokens, with the end token, by the model alone: before temperature, penalties and
    constraints.
    """

    output: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    sentences: Spans = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    answers: tuple["Completion", ...] = ()
    choice_log_likelihoods: tuple[float, ...] | None = None
    choice_margin: float | None = None
    # In other batches it is equal up to the precision of the forward pass, and the answer is the same.
    answer_logprob: float | None = field(default=None, compare=False)


# Columns between the stages. The prefix `in.` marks passed-through columns, which may have any name.
PASSED = "in."
DEAD_LETTER = pa.struct([("stage", pa.string()), ("error_type", pa.string()), ("message", pa.string())])
STAGED = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("messages", pa.string()),  # as JSON, if the record has messages instead of a prompt
        ("template", pa.string()),  # arguments of the chat template, as a JSON object, if the record has any
        ("sampling", pa.string()),  # the record's own settings, as a JSON object
        ("raw", pa.string()),  # the text of a record that has a dead letter
        ("dead", DEAD_LETTER),  # null for a record that is still to be answered
    ]
)
_ROUTE = [
    ("mixture", pa.string()),
    ("route_score", pa.float32()),
    ("route_confidence", pa.float32()),
    ("fallback", pa.bool_()),
    ("last_assistant", pa.bool_()),  # a conversation that ends with a turn of the assistant
]
ROUTED = pa.schema([("tokens", pa.list_(pa.int32())), *_ROUTE])
SPANS = pa.list_(pa.struct([("start", pa.int32()), ("mixture", pa.string())]))
# Added by the route stage with routing.granularity=sentence, and the resulting column of the output.
SENTENCES = pa.schema([("spans", SPANS), ("context", pa.int32())])
SENTENCE_MIXTURES = pa.schema([("sentence_mixtures", SPANS)])
# Added by the route stage with routing.granularity=parts: each part's first token in `tokens`, which holds the prompts
# of all parts one after another, its mixture, and the mark of its item ("2.", "-"). Null for a prompt of one part.
PROMPT_PARTS = pa.schema(
    [("prompt_parts", pa.list_(pa.struct([("start", pa.int32()), ("mixture", pa.string()), ("mark", pa.string())])))]
)
COMPLETED = pa.schema(
    [
        ("output", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("answer_logprob", pa.float32()),
    ]
)
# The generate stage adds these if the config, or settings of a record, may request them; null where none does.
_TOP = [("token_id", pa.int32()), ("token", pa.string()), ("logprob", pa.float32())]
LOGPROBS = pa.list_(pa.struct([*_TOP, ("top_logprobs", pa.list_(pa.struct(_TOP)))]))
_OUTPUT = [("output", pa.string()), ("finish_reason", pa.string()), ("completion_tokens", pa.int32())]
OUTPUTS = pa.list_(pa.struct([*_OUTPUT, ("logprobs", LOGPROBS)]))
# The resulting column of the output: the answer to each part.
PARTS = pa.schema([("parts", pa.list_(pa.struct([*COMPLETED, ("mixture", pa.string())])))])
REQUESTED = pa.schema(
    [
        ("outputs", OUTPUTS),
        ("logprobs", LOGPROBS),
        ("choice_log_likelihoods", pa.list_(pa.float64())),
        ("choice_margin", pa.float32()),
    ]
)

# Columns of the output, before and after the passed-through ones.
DATA = pa.schema(
    [
        ("id", pa.string()),
        *COMPLETED,
        ("adapters", pa.list_(pa.string())),
        ("weights", pa.list_(pa.float32())),
        *_ROUTE,
    ]
)
# With output.keep_prompt: a text, or messages as JSON.
PROMPT = pa.schema([("prompt", pa.string()), pa.field("messages", pa.string(), metadata={"loraloom": "json"})])
PROVENANCE = pa.schema([("router_fingerprint", pa.string()), ("bank_fingerprint", pa.string())])
DEAD = pa.schema([("id", pa.string()), *DEAD_LETTER, ("record", pa.string()), ("row", pa.int64())])


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
    """Several answers as a value of the Arrow type `OUTPUTS`; None if there is only one."""
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


def concat_schemas(*schemas: pa.Schema) -> pa.Schema:
    """One schema with the fields of all schemas, in order."""
    return pa.schema([f for schema in schemas for f in schema])
