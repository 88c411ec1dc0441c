"""One answer while it is generated: its tokens, their mixtures, its sampling state, its slot."""

from dataclasses import dataclass, field

import torch

from pipeline.records import Mixture, Spans

from .attention.slots import Slot
from .request import Failure, Request, Sampling, slice_spans
from .sampling.constraints import Matcher
from .sampling.processors import TokenCounts
from .sampling.stop import StopScanner

StepLogprobs = tuple[float, list[tuple[int, float]]]
"""Log probability of the chosen token, and the most likely tokens with theirs."""


@dataclass(eq=False)
class Sequence:
    """One answer to a request, as `core.decoder.Decoder.start` makes it. Preemption drops its keys and values only.

    ``token_counts``, ``stop_scanner`` and ``matcher``: None if the settings do not need them. ``sum_logprob``: of all
    new tokens. ``sentences``: of the answer, as `Reroute` takes them. ``num_computed``: tokens whose keys and values
    are in the slot. ``admission``: index of its first admission; -1 before.
    """

    request: Request
    sampling: Sampling
    generator: torch.Generator
    new_tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    failure: Failure | None = None
    token_counts: TokenCounts | None = None
    stop_scanner: StopScanner | None = None
    matcher: Matcher | None = None
    logprobs: list[StepLogprobs] = field(default_factory=list)
    sum_logprob: float = 0.0
    sentences: list[tuple[int, Mixture]] = field(init=False)
    slot: Slot | None = None
    num_computed: int = 0
    admission: int = -1

    def __post_init__(self) -> None:
        self.sentences = [(0, self.request.mixture)]

    def fail(self, failure: Failure) -> None:
        """Finish without an answer."""
        self.finish_reason, self.failure = "failed", failure

    @property
    def mixture(self) -> Mixture:
        """The mixture of the sentence that is being generated."""
        return self.sentences[-1][1]

    @property
    def is_below_min_tokens(self) -> bool:
        """Whether it is too short to end."""
        return len(self.new_tokens) < self.sampling.min_new_tokens

    @property
    def is_plain_greedy(self) -> bool:
        """Whether its next token is the argmax of the unchanged logits."""
        return not (self.sampling.is_random or self.token_counts or self.matcher or self.is_below_min_tokens)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the answer so far."""
        return len(self.request.tokens) + len(self.new_tokens)

    @property
    def max_remaining(self) -> int:
        """New tokens that may still be generated."""
        return self.sampling.max_new_tokens - len(self.new_tokens)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Return the token ids of prompt and answer from index ``start`` to ``stop``."""
        prompt_length = len(self.request.tokens)
        if start >= prompt_length:
            return self.new_tokens[start - prompt_length : stop - prompt_length]
        return [*self.request.tokens[start:stop], *self.new_tokens[: max(0, stop - prompt_length)]]

    def spans(self, start: int, stop: int) -> Spans:
        """Return the mixtures of these tokens, with offsets from ``start``; neighbours differ."""
        prompt_length = len(self.request.tokens)
        if start >= prompt_length + self.sentences[-1][0]:
            return ((0, self.mixture),)
        answer = ((prompt_length + offset, mixture) for offset, mixture in self.sentences)
        return slice_spans([*self.request.prompt_spans, *answer], start, stop)
