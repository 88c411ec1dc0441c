"""Requests to an engine, and their outcomes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.records import Completion, Mixture, Spans


@dataclass(frozen=True)
class Constraint:
    """A format that an answer must match. ``text``: a JSON schema, a regex, or a Lark grammar for llguidance."""

    kind: Literal["json_schema", "regex", "grammar"]
    text: str


@dataclass(frozen=True)
class Sampling:
    """Sampling settings of a request. The defaults are greedy decoding without any extras.

    Names and meanings are those of vLLM and the OpenAI API. ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1 and
    ``min_p`` 0 keep all tokens. ``repetition_penalty`` counts tokens of prompt and answer, ``presence_penalty`` and
    ``frequency_penalty`` only those of the answer; `processors.apply_penalties` has the formulas. ``stop`` strings and
    the text of ``stop_token_ids`` are cut off. No answer ends before ``min_new_tokens``.

    ``n``: answers per request. ``logprobs``: None, or the number of alternatives to report for each token. ``seed``:
    replaces the run's seed and the request's id. ``choices``: the answer is one of these strings, see
    `scoring.choices.choose`; then only ``temperature``, ``n`` and ``seed`` of the other settings apply.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    n: int = 1
    logprobs: int | None = None
    seed: int | None = None
    choices: tuple[str, ...] = ()
    constraint: Constraint | None = None

    @property
    def is_random(self) -> bool:
        """Whether tokens are drawn at random. Temperatures below 1e-5 are greedy, as in vLLM."""
        return self.temperature >= 1e-5

    @property
    def is_one_text(self) -> bool:
        """Whether an answer is one free text and nothing else, so that answers of several requests can be joined."""
        return self.n == 1 and self.logprobs is None and not self.choices and self.constraint is None

    @property
    def has_penalties(self) -> bool:
        """Whether a penalty changes the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True)
class Request:
    """One prompt as token ids, with the mixture that answers it. ``id`` seeds its sampling.

    ``spans``: mixtures of the prompt's sentences, starting at token 0; empty: ``mixture`` for the whole prompt.
    ``context``: index of the first prompt token that a `Reroute` sees. ``sampling``: its own settings; None: the
    engine's defaults. ``answer_index``: index of this answer among the request's ``n``.

    Raises `ValueError` if the spans do not start at 0, are not sorted, or exceed the prompt.
    """

    id: str
    tokens: Sequence[int]
    mixture: Mixture
    spans: Spans = ()
    context: int = 0
    sampling: Sampling | None = None
    answer_index: int = 0

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.spans]
        if starts and (starts != sorted(set(starts)) or starts[0] != 0 or starts[-1] >= len(self.tokens)):
            raise ValueError(
                f"request {self.id}: spans start at {starts}, but the prompt has {len(self.tokens)} tokens"
            )

    @property
    def prompt_spans(self) -> Spans:
        """Mixtures of all prompt tokens: ``spans``, or ``mixture`` from token 0."""
        return self.spans or ((0, self.mixture),)


@dataclass(frozen=True)
class Failure:
    """A request without an answer: a short error type and a message of one line."""

    error_type: str
    message: str


Outcome = Completion | Failure
"""The result of a request."""

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Tokenises answers, each with the end token; see `models.PromptFormat.encode_answer`."""


class Reroute(Protocol):
    """Chooses a mixture for each sentence of an answer.

    Called after each new token, before the model runs it, so it must be cheap when no sentence starts. Its result must
    depend on its arguments alone.
    """

    def __call__(
        self, request: Request, new_tokens: Sequence[int], sentences: Sequence[tuple[int, Mixture]]
    ) -> Mixture | None:
        """Return the mixture of the sentence that starts at the last of ``new_tokens``; None if none starts there.

        ``sentences``: the answer's sentences so far, as (index in ``new_tokens``, mixture); the first is at 0 with
        ``request.mixture``.
        """


def slice_spans(spans: Iterable[tuple[int, Mixture]], start: int, stop: int) -> Spans:
    """Cut spans to tokens ``start`` to ``stop``, with offsets from ``start``; neighbours with equal mixtures merge."""
    cut: list[tuple[int, Mixture]] = []
    for first, mixture in spans:
        if first >= stop:
            break
        offset = max(first - start, 0)
        if cut and cut[-1][0] == offset:
            cut.pop()
        if not cut or cut[-1][1] != mixture:
            cut.append((offset, mixture))
    return tuple(cut)
