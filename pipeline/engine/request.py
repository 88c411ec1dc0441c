"""What is asked of the engine, and what comes back where it cannot answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.records import Mixture, Spans


@dataclass(frozen=True)
class Constraint:
    """What an answer must match. ``text``: a JSON schema, a regex, or a Lark grammar as llguidance reads it."""

    kind: Literal["json_schema", "regex", "grammar"]
    text: str


@dataclass(frozen=True)
class Sampling:
    """How the answer to a request is chosen. The defaults are greedy decoding without any extras.

    Names and meanings are those of vLLM and the OpenAI API. ``temperature`` 0 is greedy, ``top_k`` 0 keeps all tokens,
    as do ``top_p`` 1 and ``min_p`` 0. ``repetition_penalty`` looks at prompt and answer, ``presence_penalty`` and
    ``frequency_penalty`` at the answer; `processors.penalise` has the formulas. ``stop`` strings and the text of
    ``stop_token_ids`` are cut off. Before ``min_new_tokens`` nothing ends an answer.

    ``n``: answers to a request. ``logprobs``: None, or report each token with so many alternatives. ``seed``: takes the
    place of the run's seed and the request's id. ``choices``: the answer is one of these, see `choices.answer`; of the
    other settings only ``temperature``, ``n`` and ``seed`` then matter.
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
    def draws(self) -> bool:
        """Whether tokens are drawn. Lower temperatures than 1e-5 are greedy, as in vLLM."""
        return self.temperature >= 1e-5

    @property
    def penalises(self) -> bool:
        """Whether some penalty changes the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True)
class Request:
    """One prompt as token ids, and the mixture that answers it. ``id`` seeds its sampling.

    ``spans``: mixtures of the prompt's sentences, the first from token 0; none: ``mixture`` for the whole prompt.
    ``context``: first token of the prompt that a `Reroute` looks at. ``sampling``: its own settings; None: those of
    all. ``number``: which of its answers this is, where it gets several.
    """

    id: str
    tokens: Sequence[int]
    mixture: Mixture
    spans: Spans = ()
    context: int = 0
    sampling: Sampling | None = None
    number: int = 0

    def __post_init__(self) -> None:
        starts = [start for start, _ in self.spans]
        if starts and (starts != sorted(set(starts)) or starts[0] != 0 or starts[-1] >= len(self.tokens)):
            raise ValueError(f"request {self.id}: spans start at {starts}, of {len(self.tokens)} tokens")


class Reroute(Protocol):
    """Gives the sentences of an answer mixtures of their own.

    Called after each new token, before the model has seen it, so it must be cheap where no sentence starts. What it
    returns must depend on its arguments alone.
    """

    def __call__(
        self, request: Request, new_tokens: Sequence[int], sentences: Sequence[tuple[int, Mixture]]
    ) -> Mixture | None:
        """The mixture of the sentence that the last of ``new_tokens`` starts; None where it starts none.

        ``sentences``: those generated so far, (place in ``new_tokens``, mixture); the first starts at 0 with
        ``request.mixture``.
        """
        ...


@dataclass(frozen=True)
class Failure:
    """A request that has no answer, with a short error type and one line for people."""

    error_type: str
    message: str
