"""From a text to the sentences of its tokens, for routing sentence by sentence (DLP-LoRA, arXiv 2410.01497)."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sentencex import get_sentence_boundaries


@dataclass(frozen=True)
class SentenceSettings:
    """How prompts and answers are divided, and what the router is shown of them.

    ``language``: ISO 639 code for sentencex; languages that it has no rules for are divided by English ones.
    ``context_sentences``: so many sentences before a sentence of the prompt are shown to the router with it, back to
    the start of its paragraph.
    ``min_sentence_tokens``: a sentence of fewer tokens (a list number, a single choice) joins its neighbour.
    """

    language: str = "en"
    context_sentences: int = 2
    min_sentence_tokens: int = 8


@dataclass(frozen=True)
class Sentence:
    """A run of tokens, up to the next sentence's: the place of its first token, and of its paragraph's first token."""

    start: int
    paragraph: int


Sentences = tuple[Sentence, ...]
"""All sentences of a prompt, in order; the first starts at token 0, so that they cover every token once."""


def of_prompt(text: str, ends: Sequence[int], head: int, tail: int, settings: SentenceSettings) -> Sentences:
    """Sentences of a prompt whose first ``head`` and last ``tail`` tokens are a chat template's; `divide` for the rest.

    The template goes with the prompt's first and last sentence: it says nothing of the task, to be routed for itself.
    """
    minimum = settings.min_sentence_tokens
    without_head = cut_left(divide(text, ends, settings), 0, head, minimum)
    return cut_right(without_head, len(ends) - tail, minimum)


def divide(text: str, ends: Sequence[int], settings: SentenceSettings) -> Sentences:
    """Sentences of a text of at least one token.

    ``ends``: for each token the character it ends before, as a tokenizer's offsets say. A token belongs to the
    sentence of its last character: one that begins with the space between two sentences is the first of the second.
    """
    # Tokens that a tokenizer adds have the offsets (0, 0); they go with what is before them.
    last = list(accumulate((max(end - 1, 0) for end in ends), max))
    found: list[Sentence] = []
    for place, new_paragraph in _pieces(text, settings.language):
        start = bisect_left(last, place) if found else 0
        if start < len(ends) and not (found and start == found[-1].start):
            _add(found, start, new_paragraph, settings.min_sentence_tokens)
    return _without_short_end(tuple(found) or (Sentence(0, 0),), len(ends), settings.min_sentence_tokens)


def cut_left(sentences: Sentences, removed: int, head: int, minimum: int) -> Sentences:
    """Sentences of a prompt that lost ``removed`` tokens after its first ``head`` ones (its template's).

    What is left of the sentence that was cut joins the next one where it is shorter than ``minimum`` tokens.
    """
    moved = [Sentence(s.start - removed, max(0, s.paragraph - removed)) for s in sentences]
    kept = tuple(s for s in moved if s.start >= head + minimum)
    return (Sentence(0, 0), *kept)


def cut_right(sentences: Sentences, kept: int, minimum: int) -> Sentences:
    """Sentences of a prompt of which the first ``kept`` tokens are left; what follows them goes with the last one."""
    left = tuple(s for s in sentences if s.start < kept)
    return _without_short_end(left or sentences[:1], kept, minimum)


def ends_with_start(text: str, opening: str, language: str) -> bool:
    """Whether ``opening``, the end of ``text``, is all there is of its last sentence, and others are before it."""
    pieces = list(_pieces(text, language))
    return len(pieces) > 1 and len(text[pieces[-1][0] :].strip()) <= len(opening.strip())


def _pieces(text: str, language: str) -> Iterator[tuple[int, bool]]:
    """Where each sentence that is not just white space starts, and whether a paragraph starts with it."""
    new_paragraph = True
    for piece in get_sentence_boundaries(language, text):
        new_paragraph |= piece["is_paragraph_break"]
        if piece["text"].strip():
            yield piece["start_index"], new_paragraph
            new_paragraph = False


def _add(found: list[Sentence], start: int, new_paragraph: bool, minimum: int) -> None:
    """Add a sentence, where the one before is long enough to stand alone.

    A short one goes with what follows it in its paragraph; at the end of a paragraph, with what is before it there.
    """
    if found and start - found[-1].start < minimum:
        alone = found[-1].start == found[-1].paragraph  # a heading goes with the next paragraph
        if not new_paragraph or alone:
            return
        found.pop()
    found.append(Sentence(start, start if new_paragraph else found[-1].paragraph))


def _without_short_end(sentences: Sentences, length: int, minimum: int) -> Sentences:
    return sentences[:-1] if len(sentences) > 1 and length - sentences[-1].start < minimum else sentences
