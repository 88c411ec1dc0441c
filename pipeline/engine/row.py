"""One answer while it is generated."""

from dataclasses import dataclass, field

import torch

from ..records import Mixture
from .constraints import Matcher
from .processors import TokenCounts
from .request import Failure, Request, Sampling
from .stop import StopScanner

StepLogprobs = tuple[float, list[tuple[int, float]]]
"""Log probability of the chosen token, and the most likely tokens with theirs."""


@dataclass
class Row:
    """One answer to a request: all that it is, apart from its keys and values, which can be computed again.

    `decoding.Decoder.begin` sets what its settings need; ``counts``, ``stops`` and ``matcher`` are None where they do
    not.
    """

    request: Request
    generator: torch.Generator = field(default_factory=torch.Generator)
    sampling: Sampling = field(default_factory=Sampling)
    new_tokens: list[int] = field(default_factory=list)
    ended: str | None = None  # finish reason
    failure: Failure | None = None  # where it ended without an answer
    counts: TokenCounts | None = None
    stops: StopScanner | None = None
    matcher: Matcher | None = None
    logprobs: list[StepLogprobs] = field(default_factory=list)
    sentences: list[tuple[int, Mixture]] = field(init=False)  # of the answer, as `Reroute` takes them

    def __post_init__(self) -> None:
        self.sentences = [(0, self.request.mixture)]

    @property
    def mixture(self) -> Mixture:
        """The mixture of the sentence that is being generated."""
        return self.sentences[-1][1]

    @property
    def must_go_on(self) -> bool:
        """Whether it is too short to end."""
        return len(self.new_tokens) < self.sampling.min_new_tokens

    @property
    def is_plain(self) -> bool:
        """Whether its next token is simply the most likely one."""
        return not (self.sampling.draws or self.counts or self.matcher or self.must_go_on)
