"""Forms of prompts: each keeps what it should, whatever the text."""

import json
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.routing import forms
from tests import examples

PROMPT = "Which of these is a fruit? Think before you answer.\nchoice: a red apple\nchoice: an old chair\nAnswer:"
TEXTS = st.text(max_size=300)
ANY_SEED = st.integers(0, 200)


def drawn(form: forms.Form, text: str = PROMPT, count: int = 60) -> set[str]:
    return {form(text, Random(seed)) for seed in range(count)}


@settings(max_examples=examples(200))
@given(TEXTS, ANY_SEED)
def test_a_prompt_never_becomes_empty_and_depends_on_the_seed_alone(text: str, seed: int) -> None:
    found = forms.vary(text, Random(seed))
    assert found or not text
    assert found == forms.vary(text, Random(seed))


def test_prompts_come_in_many_forms_and_some_as_they_are() -> None:
    found = [forms.vary(PROMPT, Random(seed)) for seed in range(300)]
    assert PROMPT in found
    assert len(set(found)) > 200


def test_a_list_gets_other_marks_and_keeps_its_items() -> None:
    found = drawn(forms.relist)
    assert len(found) > 8
    for text in found:
        assert text.startswith("Which of these is a fruit? Think before you answer.\n")
        assert text.index("a red apple") < text.index("an old chair") < text.index("Answer:")
        assert "choice:" not in text


@pytest.mark.parametrize(
    "lines", ["- one two\n- three", "1. one two\n2. three", "(a) one two\n(b) three", "A) one two\nB) three"]
)
def test_lists_are_known_by_their_marks(lines: str) -> None:
    assert "one two; three" in "".join(drawn(forms.relist, f"Text first.\n{lines}"))


def test_lines_that_are_no_list_stay() -> None:
    text = "Premise: it rains.\nConclusion: it is wet.\nA line\nTrue or false?"
    assert drawn(forms.relist, text) == {text}


@settings(max_examples=examples(100))
@given(TEXTS, ANY_SEED)
def test_a_part_is_a_stretch_of_at_least_eight_words(text: str, seed: int) -> None:
    part = forms.cut(text, Random(seed))
    assert part in text
    assert len(part.split()) >= min(8, len(text.split()))


def test_parts_come_from_both_ends_and_the_middle() -> None:
    parts = drawn(forms.cut)
    assert any(PROMPT.startswith(part) for part in parts)
    assert any(PROMPT.endswith(part) for part in parts)
    assert any(not PROMPT.startswith(part) and not PROMPT.endswith(part) for part in parts)


@settings(max_examples=examples(100))
@given(TEXTS, ANY_SEED)
def test_white_space_changes_no_word(text: str, seed: int) -> None:
    assert forms.space(text, Random(seed)).split() == text.split()


def test_case_is_all_that_changes() -> None:
    assert drawn(forms.recase) == {PROMPT.lower(), PROMPT.upper(), PROMPT.title()}


def test_typos_change_at_most_some_characters() -> None:
    for text in drawn(forms.mistype):
        assert text != PROMPT
        assert len(PROMPT) * 0.9 <= len(text) <= len(PROMPT)


def test_a_wrapper_holds_the_prompt() -> None:
    found = drawn(forms.wrap)
    assert all(PROMPT in text and text != PROMPT for text in found)
    assert {text.startswith(PROMPT) for text in found} == {text.endswith(PROMPT) for text in found} == {True, False}


@settings(max_examples=examples(50))
@given(TEXTS, ANY_SEED)
def test_json_holds_the_prompt_as_a_field(text: str, seed: int) -> None:
    assert text in json.loads(forms.to_json(text, Random(seed))).values()
