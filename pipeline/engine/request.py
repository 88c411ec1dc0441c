"""What is asked of the engine, and what comes back where it cannot answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..records import Mixture


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
    """One prompt as token ids, and the mixture that answers it. ``id`` seeds its sampling."""

    id: str
    tokens: Sequence[int]
    mixture: Mixture


@dataclass(frozen=True)
class Failure:
    """A request that has no answer, with a short error type and one line for people."""

    error_type: str
    message: str
