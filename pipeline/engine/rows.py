"""One request while it is worked on: its tokens, its mixtures token by token, and its place in the cache."""

from dataclasses import dataclass, field

import torch

from ..records import Mixture, Spans
from .request import Request
from .slots import Slot


@dataclass(eq=False)
class Row:
    """``done``: tokens whose keys and values are in the slot. ``seniority``: number of its first admission."""

    request: Request
    generator: torch.Generator
    max_new_tokens: int
    new_tokens: list[int] = field(default_factory=list)
    ended: str | None = None  # finish reason
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
    def total(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.request.tokens) + len(self.new_tokens)

    @property
    def budget(self) -> int:
        """New tokens that may still come."""
        return self.max_new_tokens - len(self.new_tokens)

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


def prompt_spans(request: Request) -> Spans:
    """Mixtures of the prompt's tokens, with or without sentences of its own."""
    return request.spans or ((0, request.mixture),)


def cut_spans(spans: Spans | list[tuple[int, Mixture]], start: int, stop: int) -> Spans:
    """The part of spans from ``start`` to ``stop``, counted from there; neighbours differ."""
    cut: list[tuple[int, Mixture]] = []
    for first, mixture in spans:
        if first >= stop:
            break
        place = max(first - start, 0)
        if cut and cut[-1][0] == place:
            cut.pop()
        if not cut or cut[-1][1] != mixture:
            cut.append((place, mixture))
    return tuple(cut)
