"""Cut prompts into parts with a router, and fold the routes of the parts into one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from pipeline.conversations import last_text, with_last_text
from pipeline.records import Mixture, Prompt

from .parts import PartSettings, Seen, cut_pieces
from .pieces import Piece, pieces_of
from .policy import RoutingPolicy
from .router import Router

_ROUTED = 1024  # texts in one forward pass of the router
_TOGETHER = 64  # prompts that are cut together: what the router sees of one may have many times its tokens
_MAX_CHARACTERS = 2**15  # of a prompt that is cut; a longer one is a document


@dataclass(frozen=True)
class PromptPart:
    """A part as a prompt of its own, and the ``mark`` of its item ("2."), empty if it has none."""

    prompt: Prompt
    mark: str = ""


@dataclass(frozen=True)
class PartRoute:
    """The route of a prompt of several parts, and the mixture of each.

    ``score``: the best in-domain score of a part; ``fallback``: even this score is below the threshold.
    ``confidence``: of the part with the least.
    """

    mixtures: tuple[Mixture, ...]
    score: float
    confidence: float
    fallback: bool

    @property
    def mixture(self) -> Mixture:
        """Mean of the parts' mixtures, which has the adapters of all of them."""
        return Mixture.mean(self.mixtures)


class TextTokens(Protocol):
    """A text as token ids, with the end of each token in the text."""

    @property
    def tokens(self) -> Sequence[int]:
        """Token ids."""

    @property
    def ends(self) -> Sequence[int]:
        """Index of the character after each token."""


class TextFormat(Protocol):
    """The parts of `models.PromptFormat` that are used."""

    def encode_text(self, texts: Sequence[str]) -> Sequence[TextTokens]:
        """Return texts as they are tokenised within a template."""

    def template_tokens(self, prompt: Prompt) -> tuple[list[int], list[int]]:
        """Return the token ids that the template puts before and after one user message."""


class PartCutter:
    """Cuts prompts into parts, many prompts at a time."""

    def __init__(self, prompts: TextFormat, router: Router, policy: RoutingPolicy, settings: PartSettings) -> None:
        self.prompts = prompts
        self.router = router
        self.policy = policy
        self.settings = settings

    def cut(self, prompts: Sequence[Prompt]) -> list[list[PromptPart]]:
        """Return the parts of each prompt; a prompt that asks one thing is its only part, unchanged."""
        texts = [last_text(prompt) or "" for prompt in prompts]
        pieces = [pieces_of(text, self.settings.language) if len(text) <= _MAX_CHARACTERS else [] for text in texts]
        chosen = [index for index, some in enumerate(pieces) if len(some) > 1]
        encoded = self.prompts.encode_text([texts[index] for index in chosen])
        starts: dict[int, list[int]] = {}
        for first in range(0, len(chosen), _TOGETHER):
            together = slice(first, first + _TOGETHER)
            cutters = [
                _Cutter(pieces[index], found, self.prompts.template_tokens(prompts[index]))
                for index, found in zip(chosen[together], encoded[together], strict=True)
            ]
            self._run(cutters)
            starts |= {index: cutter.starts for index, cutter in zip(chosen[together], cutters, strict=True)}
        return [
            cut_prompt(prompt, pieces[i], starts[i]) if i in starts else [PromptPart(prompt)]
            for i, prompt in enumerate(prompts)
        ]

    def _run(self, cutters: Sequence["_Cutter"]) -> None:
        """Answer what the cutters ask, all of them together, until they have decided."""
        while cutters := [cutter for cutter in cutters if cutter.asked]:
            found = self._see([tokens for cutter in cutters for tokens in cutter.asked])
            for cutter in cutters:
                count = len(cutter.asked)
                cutter.go_on(Seen(found.probabilities[:count], found.scores[:count]))
                found = Seen(found.probabilities[count:], found.scores[count:])

    def _see(self, prompts: Sequence[Sequence[int]]) -> Seen:
        blocks = [prompts[start : start + _ROUTED] for start in range(0, len(prompts), _ROUTED)]
        found = [self.router.classify(block, self.policy.acceptance) for block in blocks]
        return Seen(
            np.concatenate([one.probabilities.numpy() for one in found]),
            np.concatenate([one.scores.numpy() for one in found]),
        )


class _Cutter:
    """Runs `cut_pieces` for one prompt. ``asked``: token ids to be seen by the router; none once it has decided.

    A span of pieces is seen as a prompt of its own: without the mark of its item, within the chat template.
    """

    def __init__(self, pieces: Sequence[Piece], text: TextTokens, frame: tuple[list[int], list[int]]) -> None:
        self._tokens, self._frame = text.tokens, frame
        # A token belongs to the piece of its last character; tokens that a tokenizer adds have the end 0.
        last = np.maximum.accumulate(np.maximum(np.array(text.ends) - 1, 0))
        self._starts = [*np.searchsorted(last, [piece.start for piece in pieces]).tolist(), len(last)]
        self._bodies = np.searchsorted(last, [piece.body for piece in pieces]).tolist()
        self._cutting = cut_pieces(pieces)
        self.starts: list[int] = []
        self.asked: list[list[int]] = []
        self.go_on(None)

    def go_on(self, seen: Seen | None) -> None:
        """Give the decision what it asked for; `asked` is what it asks next."""
        try:
            spans = next(self._cutting) if seen is None else self._cutting.send(seen)
            self.asked = [self._prompt(*span) for span in spans]
        except StopIteration as stop:
            self.starts, self.asked = stop.value, []

    def _prompt(self, first: int, end: int) -> list[int]:
        head, tail = self._frame
        start = self._bodies[first]
        stop = max(self._starts[end], start + 1)  # no piece is without a token
        return [*head, *self._tokens[start:stop], *tail]


def cut_prompt(prompt: Prompt, pieces: Sequence[Piece], starts: Sequence[int]) -> list[PromptPart]:
    """Cut a prompt before the pieces ``starts``; one part is the prompt itself.

    What stands before the first part is put before every part if it has several pieces: then it is a text that the
    questions are about. A single sentence ("Answer each of these.") is left out. A part of a single item loses its
    mark; an item without text asks nothing.
    """
    text = last_text(prompt) or ""
    head = text[: pieces[starts[0]].start] if starts[0] > 1 else ""
    bounds = _bounds(pieces, starts, len(text))
    asked = [(text[begin:end].strip(), mark) for begin, end, mark in bounds if text[begin:end].strip()]
    if len(asked) < 2:
        return [PromptPart(prompt)]
    return [PromptPart(with_last_text(prompt, head + question), mark) for question, mark in asked]


def _bounds(pieces: Sequence[Piece], starts: Sequence[int], length: int) -> Iterator[tuple[int, int, str]]:
    """Yield the first and the last character of each part, and its mark if it is a single item."""
    for first, end in pairwise([*starts, len(pieces)]):
        is_item = pieces[first].mark and not any(piece.mark for piece in pieces[first + 1 : end])
        begin = pieces[first].body if is_item else pieces[first].start
        yield begin, pieces[end].start if end < len(pieces) else length, pieces[first].mark if is_item else ""
