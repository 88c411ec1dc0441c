"""Split tokenised texts into sentences, for routing sentence by sentence (DLP-LoRA, arXiv 2410.01497)."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from sentencex import get_sentence_boundaries


@dataclass(frozen=True)
class SentenceSettings:
    """Settings for splitting prompts and answers into sentences, and for the context that the router reads.

    ``language``: ISO 639 code for sentencex, which splits languages it does not know by English rules.
    ``context_sentences``: sentences of the prompt that the router reads before each sentence, back to the start of its
    paragraph.
    ``min_sentence_tokens``: a sentence of fewer tokens (a list number, a single choice) joins its neighbour.
    """

    language: str = "en"
    context_sentences: int = 2
    min_sentence_tokens: int = 8


@dataclass(frozen=True)
class Sentence:
    """A run of tokens up to the next sentence: index of its first token, and of its paragraph's first token."""

    start: int
    paragraph: int


Sentences = tuple[Sentence, ...]
"""All sentences of a prompt, in order; the first starts at token 0, so that they cover every token once."""


def prompt_sentences(text: str, ends: Sequence[int], head: int, tail: int, settings: SentenceSettings) -> Sentences:
    """Split a prompt whose first ``head`` and last ``tail`` tokens are a chat template's; see `split_sentences`.

    The template's tokens join the prompt's first and last sentence: they say nothing about the task.
    """
    minimum = settings.min_sentence_tokens
    without_head = cut_left(split_sentences(text, ends, settings), 0, head, minimum)
    return cut_right(without_head, len(ends) - tail, minimum)


def split_sentences(text: str, ends: Sequence[int], settings: SentenceSettings) -> Sentences:
    """Split a text of at least one token into sentences.

    ``ends``: the end of each token in the text, from the tokenizer's offset mapping. A token belongs to the sentence
    of its last character: one that starts with the space between two sentences is the first of the second.
    """
    # Tokens that a tokenizer adds have the offsets (0, 0); they go with the token before them.
    last = list(accumulate((max(end - 1, 0) for end in ends), max))
    found: list[Sentence] = []
    for character, new_paragraph in _starts(text, settings.language):
        start = bisect_left(last, character) if found else 0
        if start < len(ends) and not (found and start == found[-1].start):
            _add(found, start, new_paragraph, settings.min_sentence_tokens)
    return _without_short_end(tuple(found) or (Sentence(0, 0),), len(ends), settings.min_sentence_tokens)


def cut_left(sentences: Sentences, removed: int, head: int, minimum: int) -> Sentences:
    """Sentences of a prompt that lost ``removed`` tokens after its first ``head`` ones (its template's).

    The rest of the sentence that was cut joins the next one if it is shorter than ``minimum`` tokens.
    """
    moved = [Sentence(s.start - removed, max(0, s.paragraph - removed)) for s in sentences]
    kept = tuple(s for s in moved if s.start >= head + minimum)
    return (Sentence(0, 0), *kept)


def cut_right(sentences: Sentences, kept: int, minimum: int) -> Sentences:
    """Sentences of a prompt cut to its first ``kept`` tokens; tokens added after these belong to the last sentence."""
    left = tuple(s for s in sentences if s.start < kept)
    return _without_short_end(left or sentences[:1], kept, minimum)


def ends_with_start(text: str, opening: str, language: str) -> bool:
    """Whether ``opening``, the end of ``text``, is the whole last sentence of it, and not the only one."""
    starts = list(_starts(text, language))
    return len(starts) > 1 and len(text[starts[-1][0] :].strip()) <= len(opening.strip())


def _starts(text: str, language: str) -> Iterator[tuple[int, bool]]:
    """Index of the first character of each sentence with text, and whether it starts a paragraph."""
    new_paragraph = True
    for piece in get_sentence_boundaries(language, text):
        new_paragraph |= piece["is_paragraph_break"]
        if piece["text"].strip():
            yield piece["start_index"], new_paragraph
            new_paragraph = False


def _add(found: list[Sentence], start: int, new_paragraph: bool, minimum: int) -> None:
    """Add a sentence; a short one joins the next of its paragraph or, at the paragraph's end, the one before it."""
    if found and start - found[-1].start < minimum:
        alone = found[-1].start == found[-1].paragraph  # a heading goes with the next paragraph
        if not new_paragraph or alone:
            return
        found.pop()
    found.append(Sentence(start, start if new_paragraph else found[-1].paragraph))


def _without_short_end(sentences: Sentences, length: int, minimum: int) -> Sentences:
    return sentences[:-1] if len(sentences) > 1 and length - sentences[-1].start < minimum else sentences
