"""One answer while it is generated: its tokens, its mixtures token by token, what its settings need, its slot."""

from dataclasses import dataclass, field

import torch

from pipeline.records import Mixture, Spans

from .attention.slots import Slot
from .request import Failure, Request, Sampling
from .sampling.constraints import Matcher
from .sampling.processors import TokenCounts
from .sampling.stop import StopScanner
from .spans import cut_spans, prompt_spans

StepLogprobs = tuple[float, list[tuple[int, float]]]
"""Log probability of the chosen token, and the most likely tokens with theirs."""


@dataclass(eq=False)
class Row:
    """One answer to a request. All but its keys and values stays when it is preempted.

    `decoding.Decoder.begin` sets what its settings need; ``counts``, ``stops`` and ``matcher`` are None where they do
    not. ``done``: tokens whose keys and values are in the slot. ``seniority``: number of its first admission.
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
    slot: Slot | None = None
    done: int = 0
    seniority: int = -1

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

    @property
    def total(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.request.tokens) + len(self.new_tokens)

    @property
    def budget(self) -> int:
        """New tokens that may still come."""
        return self.sampling.max_new_tokens - len(self.new_tokens)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of prompt and answer from place ``start`` to ``stop``."""
        prompt = len(self.request.tokens)
        if start >= prompt:
            return self.new_tokens[start - prompt : stop - prompt]
        return [*self.request.tokens[start:stop], *self.new_tokens[: max(0, stop - prompt)]]

    def spans(self, start: int, stop: int) -> Spans:
        """Mixtures of these tokens, counted from ``start``; neighbours differ."""
        prompt = len(self.request.tokens)
        if start >= prompt + self.sentences[-1][0]:
            return ((0, self.mixture),)
        whole = [*prompt_spans(self.request), *((prompt + place, mixture) for place, mixture in self.sentences)]
        return cut_spans(whole, start, stop)
