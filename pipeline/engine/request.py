"""What is asked of the engine, and what comes back where it cannot answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..records import Mixture, Spans


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 keep all tokens."""

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """One prompt as token ids, and the mixture that answers it. ``id`` seeds its sampling.

    ``spans``: mixtures of the prompt's sentences, the first from token 0; none: ``mixture`` for the whole prompt.
    ``context``: first token of the prompt that a `Reroute` looks at.
    """

    id: str
    tokens: Sequence[int]
    mixture: Mixture
    spans: Spans = ()
    context: int = 0

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
