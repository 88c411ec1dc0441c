"""Places where a prompt may be cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.routing.pieces import Level, pieces_of

LINES = st.sampled_from(
    ["1. red", "2. cold", "- red", "(a) tall (b) loud", "What is red? It is cold.", "", " ", "a\tb", "Q1: x"]
)


def texts(text: str) -> list[str]:
    starts = [piece.start for piece in pieces_of(text, "en")]
    return [text[start:stop].strip() for start, stop in pairwise([*starts, len(text)])]


@given(st.lists(LINES, max_size=12).map("\n".join) | st.text("ab1.) \n-(?", max_size=60))
def test_pieces_hold_all_of_a_text_in_order(text: str) -> None:
    found = pieces_of(text, "en")
    assert "".join("".join(texts(text)).split()) == "".join(text.split())
    assert [p.start for p in found] == sorted({p.start for p in found})
    for piece in found:
        assert text[piece.start : piece.body].strip() == piece.mark
        assert not text[piece.start].isspace()
    assert sum(bool(p.mark) for p in found) != 1


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("1. a\n2. b\n3. c", ["1.", "2.", "3."]),
        ("Answer:\n(1) a\n\n(2) b", ["", "(1)", "(2)"]),
        ("- a\n- b", ["-", "-"]),
        ("Question 1: a\nQuestion 2: b", ["Question 1:", "Question 2:"]),
        ("### Task 1: a\n### Task 2: b", ["### Task 1:", "### Task 2:"]),
        ("I ask: (a) one (b) two", ["", "(a)", "(b)"]),
        ("1. a\n- x\n- y\n2. b", ["1.", "", "", "2."]),
        ("1. a\n1. x\n2. b\n5. y", ["1.", "", "2.", ""]),
        ("In 1999. It\nwas 3. not", ["", "", ""]),
        ("2. alone", [""]),
    ],
)
def test_items_are_those_of_one_list(text: str, marks: list[str]) -> None:
    assert [p.mark for p in pieces_of(text, "en")] == marks


def test_levels_say_what_starts() -> None:
    found = pieces_of("One. Two.\nline\n\nparagraph\n \n1. item\n2. item", "en")
    assert [p.level for p in found] == [
        Level.PARAGRAPH,
        Level.SENTENCE,
        Level.LINE,
        Level.PARAGRAPH,
        Level.PARAGRAPH,
        Level.LINE,
    ]
    assert pieces_of(" \n ", "en") == []
