"""The decision where a prompt is cut, against a router that sees the share of each class in a span."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.routing.parts import Seen, Span, cut_pieces, join_answers
from pipeline.routing.pieces import Level, Piece

CLASSES = 3


def pieces(levels: Sequence[Level], items: Sequence[int] = ()) -> list[Piece]:
    return [Piece(10 * i, 10 * i + 2 * (i in items), level, "-" * (i in items)) for i, level in enumerate(levels)]


def see(classes: Sequence[int], spans: Sequence[Span]) -> Seen:
    """Spans of one class are like training prompts; the others are less so, the more they are mixed."""
    shares = [[classes[a:b].count(c) / (b - a) for c in range(CLASSES)] for a, b in spans]
    return Seen(np.array(shares), np.array([0.5 + 0.4 * max(share) for share in shares]))


def cut(found: Sequence[Piece], classes: Sequence[int], score: float | None = None) -> list[int]:
    decision = cut_pieces(found)
    try:
        spans = next(decision)
        while True:
            assert all(0 <= a < b <= len(found) for a, b in spans)
            seen = see(classes, spans)
            spans = decision.send(seen if score is None else Seen(seen.probabilities, np.full(len(spans), score)))
    except StopIteration as stop:
        starts: list[int] = stop.value
        return starts


def changes(classes: Sequence[int]) -> list[int]:
    return [i for i, c in enumerate(classes) if i == 0 or c != classes[i - 1]]


CLASS_LISTS = st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=12)


@given(CLASS_LISTS, st.data())
def test_parts_are_runs_of_pieces(classes: list[int], data: st.DataObject) -> None:
    levels = data.draw(st.lists(st.sampled_from(Level), min_size=len(classes), max_size=len(classes)))
    items = data.draw(st.sets(st.integers(0, len(classes) - 1)))
    items = items if len(items) > 1 else set()
    starts = cut(pieces(levels, items), classes)
    assert starts == sorted(set(starts))
    assert starts[0] in (0, min(items, default=0))
    assert len(starts) == 1 or starts[-1] < len(classes)


@given(st.integers(0, CLASSES - 1), st.lists(st.sampled_from(Level), min_size=1, max_size=12), st.integers(0, 12))
def test_a_prompt_of_one_class_is_never_cut(only: int, levels: list[Level], items: int) -> None:
    listed = range(items) if 1 < items <= len(levels) else ()
    assert cut(pieces(levels, listed), [only] * len(levels)) == [0]


@given(CLASS_LISTS)
def test_items_and_paragraphs_are_cut_where_the_class_changes(classes: list[int]) -> None:
    every = range(len(classes)) if len(classes) > 1 else ()
    for found in (pieces([Level.LINE] * len(classes), every), pieces([Level.PARAGRAPH] * len(classes))):
        # Nothing is nearer to training prompts than anything else, which items and paragraphs do not need.
        assert cut(found, classes, score=0.9) == changes(classes)


@given(st.integers(0, 1), st.integers(1, 6), st.integers(1, 6))
def test_lines_and_sentences_are_cut_where_both_sides_are_nearer(first: int, left: int, right: int) -> None:
    classes = [first] * left + [first + 1] * right
    for level in (Level.LINE, Level.SENTENCE):
        found = pieces([Level.PARAGRAPH, *[level] * (len(classes) - 1)])
        assert cut(found, classes) == [0, left]
        assert cut(found, classes, score=0.9) == [0], "no side is nearer"
        assert cut(found, classes, score=0.995) == [0]


def test_three_tasks_in_lines_are_three_parts() -> None:
    assert cut(pieces([Level.PARAGRAPH, *[Level.LINE] * 8]), [0, 0, 0, 1, 1, 1, 2, 2, 2]) == [0, 3, 6]


def test_the_text_before_a_list_is_no_part() -> None:
    found = pieces([Level.PARAGRAPH, Level.LINE, Level.LINE], items=[1, 2])
    assert cut(found, [2, 0, 1]) == [1, 2]


def test_a_long_document_is_not_cut_at_its_sentences() -> None:
    classes = [0] * 40 + [1] * 40
    assert cut(pieces([Level.PARAGRAPH, *[Level.SENTENCE] * 79]), classes) == [0]
    assert cut(pieces([Level.PARAGRAPH, *[Level.SENTENCE] * 39]), classes[20:60]) == [0, 20]


@pytest.mark.parametrize(
    ("marks", "joined"),
    [(["1.", "2."], "1. yes\n2. no"), (["", ""], "yes\nno"), (["-", ""], "- yes\nno")],
)
def test_answers_are_joined_behind_the_marks_of_their_items(marks: list[str], joined: str) -> None:
    assert join_answers(marks, ["yes", "no"]) == joined
