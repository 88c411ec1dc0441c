"""Decide where a prompt that asks several things is cut into parts, from the router's view of its pieces.

Each part is then a prompt of its own, so that each gets its own mixture and answer. A router takes the mean over all
tokens, so that it sees one thing at most in a whole prompt that asks several.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .pieces import Level, Piece

# A part that is cut at a line or a sentence must be nearer to the training prompts than the whole prompt by this
# cosine, or parts of one question would be taken for questions (docs/tune.md has the shares).
_MARGIN = 0.01
_MAX_PIECES = 48  # of the kind that a prompt is cut at: one with more is a document, or a list of data


@dataclass(frozen=True)
class PartSettings:
    """Settings for cutting prompts into parts. ``language``: ISO 639 code for sentencex, which finds sentences."""

    language: str = "en"


@dataclass(frozen=True)
class Seen:
    """The ``probabilities`` [n x classes] and in-domain ``scores`` [n] that a router gives n texts."""

    probabilities: np.ndarray
    scores: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """The likeliest class of each text [n]."""
        likeliest: np.ndarray = self.probabilities.argmax(1)
        return likeliest


Span = tuple[int, int]
"""Pieces of a prompt, as the index of the first one and of the one after the last."""

Cutting = Generator[list[Span], Seen, list[int]]
"""Asks for spans as the router sees them, each as a prompt of its own; returns the pieces that parts start with."""


def cut_pieces(pieces: Sequence[Piece]) -> Cutting:
    """Decide which of a prompt's pieces (at least one) start a part; the first does, or the first item of a list.

    The clearest signs go first, and the first kind that gives several parts decides: items of the list, paragraphs,
    lines, sentences. Items and paragraphs are cut where the class changes, and on both sides of an item without text.
    Lines and sentences also need the margin.
    """
    items = [index for index, piece in enumerate(pieces) if piece.mark]
    paragraphs = [index for index, piece in enumerate(pieces) if piece.level == Level.PARAGRAPH or index == 0]
    for firsts in (items, paragraphs):
        if 1 < len(firsts) <= _MAX_PIECES:
            seen = yield list(pairwise([*firsts, len(pieces)]))
            blank = np.array([pieces[first].is_blank for first in firsts])
            after_blank = np.concatenate([[False], blank[:-1]])
            is_new = _changes(seen.classes) | blank | after_blank
            changes = [first for first, starts_part in zip(firsts, is_new, strict=True) if starts_part]
            if len(changes) > 1:
                return changes
    for levels in ((Level.LINE, Level.PARAGRAPH), (Level.SENTENCE,)):
        middles = [index for index, piece in enumerate(pieces) if index and piece.level in levels]
        if len(middles) < _MAX_PIECES:
            starts = yield from _split((0, len(pieces)), middles)
            if len(starts) > 1:
                return starts
    return [0]


def join_answers(marks: Sequence[str], answers: Sequence[str]) -> str:
    """Join the answers to the parts of a prompt, one a line, each behind the mark of its item if it has one."""
    return "\n".join(f"{mark} {answer}".strip() for mark, answer in zip(marks, answers, strict=True))


def _changes(classes: np.ndarray) -> np.ndarray:
    """Whether each class differs from the one before it; the first one does."""
    return np.concatenate([[True], classes[1:] != classes[:-1]])


def _split(span: Span, places: Sequence[int]) -> Cutting:
    """Cut a span at one of ``places``, so that both sides have other classes and are nearer to the training prompts.

    Goes on in both. Returns the starts of all.
    """
    first, end = span
    middles = [place for place in places if first < place < end]
    if not middles:
        return [first]
    whole = yield [span]
    nearer = float(whole.scores[0]) + _MARGIN
    if nearer >= 1:  # no cosine is
        return [first]
    left = yield [(first, middle) for middle in middles]
    right = yield [(middle, end) for middle in middles]
    possible = (left.classes != right.classes) & (np.minimum(left.scores, right.scores) > nearer)
    if not possible.any():
        return [first]
    # Several places may be possible. The pieces on each side, one by one, tell best which one is right.
    local = yield list(pairwise([first, *middles, end]))
    logs = np.log(local.probabilities + 1e-6)
    fits = [
        logs[: place + 1, left.classes[place]].sum() + logs[place + 1 :, right.classes[place]].sum()
        for place in range(len(middles))
    ]
    middle = middles[int(np.where(possible, fits, -np.inf).argmax())]
    before = yield from _split((first, middle), middles)
    after = yield from _split((middle, end), middles)
    return [*before, *after]
