"""Find the places where a prompt may be cut into parts: items of a list, paragraphs, lines and sentences."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from sentencex import get_sentence_boundaries

# Marks at the start of a line: "1.", "2)", "(3)", "b)", "-", "*", "Question 2:", "Q1.", "### Task 3:".
_MARK = re.compile(
    r"""(?:\#+[ \t]*)?
    (?: \(?(?:\d{1,3}|[A-Za-z])[.):]\)?
      | [-*+\u2022\u2023\u25e6\u2013]
      | [^\W\d_]+[ \t]?\#?\d{1,3}[.):]
    )(?=\s)""",
    re.VERBOSE,
)
_LINE = re.compile(r"^([^\S\n]*)\S.*$", re.MULTILINE)
_SPACE = re.compile(r"[^\S\n]*")
_INLINE = re.compile(r"(?<!\S)\(?(?:\d{1,2}|[a-z])\)(?=\s)")  # "(a) ... (b) ..." within a line


class Level(IntEnum):
    """What starts at a place; a higher level is a clearer sign that another thing is asked."""

    SENTENCE = 0
    LINE = 1
    PARAGRAPH = 2


@dataclass(frozen=True)
class Piece:
    """A stretch of a text that is not cut further, up to the ``start`` of the next piece.

    ``start`` and ``body`` are indices of characters; between them is the ``mark`` of an item, such as "2.", which no
    other piece has. ``is_blank``: an item without text up to the next one.
    """

    start: int
    body: int
    level: Level
    mark: str = ""
    is_blank: bool = False


def pieces_of(text: str, language: str) -> list[Piece]:
    """Return the pieces of a text in order; none if it is blank. ``language``: of sentencex (an ISO 639 code).

    Only one list has items: the first whose marks are of one kind, two or more, and in order if they have numbers or
    letters. Other marks, such as those of a list within an item, are text.
    """
    lines = dict(_lines(text))
    found: list[Piece] = []
    for start in sorted({*lines, *_sentence_starts(text, language), *_inline_marks(text)}):
        if not found or start > found[-1].body:  # the text of an item is no sentence beside its mark
            found.append(_piece(text, start, lines.get(start, Level.SENTENCE)))
    items = _items(found)
    ends = [*(found[index].start for index in items[1:]), len(text)]
    blank = {index for index, end in zip(items, ends, strict=False) if not text[found[index].body : end].strip()}
    return [
        replace(piece, body=piece.start, mark="")
        if piece.mark and index not in items
        else replace(piece, is_blank=index in blank)
        for index, piece in enumerate(found)
    ]


def _piece(text: str, start: int, level: Level) -> Piece:
    mark = (_INLINE if level == Level.SENTENCE else _MARK).match(text, start)
    if mark is None:
        return Piece(start, start, level)
    space = _SPACE.match(text, mark.end())
    return Piece(start, space.end() if space else mark.end(), level, mark[0])


def _items(pieces: Sequence[Piece]) -> list[int]:
    """Return the indices of the pieces that are items of the prompt's list."""
    lists: dict[str, list[int]] = defaultdict(list)
    for index, piece in enumerate(pieces):
        if piece.mark:
            kind, count = _kind(piece.mark)
            before = lists[kind]
            if count is None or not before or count == (_kind(pieces[before[-1]].mark)[1] or 0) + 1:
                before.append(index)
    return min((items for items in lists.values() if len(items) > 1), default=[])


def _kind(mark: str) -> tuple[str, int | None]:
    """Return the kind of a mark, such as "(#)" for "(2)" and for "(b)", and its number; None if it does not count."""
    number = re.search(r"\d+", mark)
    if number:
        return mark.replace(number[0], "#"), int(number[0])
    letter = re.search(r"[A-Za-z]", mark)
    if letter:
        return mark.replace(letter[0], "a" if letter[0].islower() else "A"), ord(letter[0].lower()) - ord("a") + 1
    return mark, None


def _lines(text: str) -> Iterator[tuple[int, Level]]:
    """Yield where each line with text starts, and whether it starts a paragraph, as the first and after blank ones."""
    end = -1  # of the line before
    for line in _LINE.finditer(text):
        yield line.end(1), Level.PARAGRAPH if end < 0 or text.count("\n", end, line.start()) > 1 else Level.LINE
        end = line.end()


def _sentence_starts(text: str, language: str) -> Iterator[int]:
    for sentence in get_sentence_boundaries(language, text):
        words = sentence["text"].lstrip()
        if words:
            yield sentence["start_index"] + len(sentence["text"]) - len(words)


def _inline_marks(text: str) -> Iterator[int]:
    yield from (match.start() for match in _INLINE.finditer(text))
