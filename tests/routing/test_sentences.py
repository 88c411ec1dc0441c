"""Texts divided into sentences of tokens."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pipeline.conversations import PromptSettings
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.records import Conversation
from pipeline.routing import SentenceSettings
from pipeline.routing.sentences import Sentences, cut_left, cut_right, prompt_sentences, split_sentences
from tests import examples


def bytes_tokenizer() -> Tokenizer:
    """A token for each byte: every character that is not ASCII is several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


BYTES = bytes_tokenizer()


def in_words(text: str) -> list[tuple[str, int]]:
    """Words with the space before them, and the character that each ends before."""
    found, at = [], 0
    for number, word in enumerate(text.split(" ")):
        piece = word if number == 0 else f" {word}"
        at += len(piece)
        found.append((piece, at))
    return found


def texts_of(text: str, minimum: int = 1, language: str = "en") -> list[str]:
    """The sentences of a text whose tokens are its words."""
    words = in_words(text)
    sentences = split_sentences(text, [end for _, end in words], SentenceSettings(language, 1, minimum))
    ends = [*(s.start for s in sentences[1:]), len(words)]
    return ["".join(w for w, _ in words[s.start : end]) for s, end in zip(sentences, ends, strict=True)]


def assert_covers_once(sentences: Sentences, length: int, minimum: int) -> None:
    starts = [s.start for s in sentences]
    assert starts[0] == 0
    assert all(a < b for a, b in pairwise([*starts, length]))
    assert all(0 <= s.paragraph <= s.start for s in sentences)
    assert all(b - a >= minimum for a, b in pairwise([*starts, length])) or len(starts) == 1


any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80) | st.text(
    alphabet="aB1.!?\n\r\t 。…\"')(é😀\u2028\x00", min_size=1, max_size=80
)
some_settings = st.builds(
    SentenceSettings, st.sampled_from(["en", "de", "zh", "hi", "xx"]), st.integers(0, 3), st.integers(1, 12)
)


@pytest.mark.long
@settings(max_examples=examples(300))
@given(any_text, some_settings, st.integers(0, 2), st.integers(0, 2))
def test_sentences_cover_every_token_once_in_order(
    text: str, settings: SentenceSettings, added_before: int, added_after: int
) -> None:
    ends = [0] * added_before + [end for _, end in BYTES.encode(text).offsets] + [0] * added_after
    assert_covers_once(split_sentences(text, ends, settings), len(ends), settings.min_sentence_tokens)


@pytest.mark.long
@settings(max_examples=examples(200))
@given(any_text, some_settings, st.data())
def test_sentences_of_a_cut_prompt_cover_what_is_left(
    text: str, settings: SentenceSettings, data: st.DataObject
) -> None:
    ends = [end for _, end in BYTES.encode(text).offsets]
    sentences, minimum = split_sentences(text, ends, settings), settings.min_sentence_tokens
    left = data.draw(st.integers(1, len(ends)))
    head = data.draw(st.integers(0, left - 1))
    removed = len(ends) - left
    cut = cut_left(sentences, removed, head, minimum)
    assert_covers_once(cut, left, minimum)
    assert {s.start + removed for s in cut[1:]} <= {s.start for s in sentences}
    assert_covers_once(cut_right(sentences, left, minimum), left, minimum)
    inside = prompt_sentences(text, ends, head, removed, settings)
    assert_covers_once(inside, len(ends), minimum)
    assert all(head < s.start < left for s in inside[1:])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid $3.50 today. He left.", ["Dr. Smith paid $3.50 today.", " He left."]),
        ('She said "no." Then what? Nothing!', ['She said "no."', " Then what?", " Nothing!"]),
        ("one line\nanother line", ["one line\nanother line"]),
        ("no end", ["no end"]),
        (" ", [" "]),
    ],
)
def test_sentences_are_those_of_the_splitter(text: str, expected: list[str]) -> None:
    assert texts_of(text) == expected


def test_a_token_with_the_space_before_a_sentence_is_its_first() -> None:
    assert texts_of("你好。 世界。", language="zh") == ["你好。", " 世界。"]


def test_short_sentences_go_with_what_follows_them() -> None:
    assert texts_of("1. Count the red balls. 2. Name the capital of France.", 4) == [
        "1. Count the red balls.",
        " 2. Name the capital of France.",
    ]


def test_a_short_end_goes_with_what_is_before_it() -> None:
    text = "Count all the red balls. It is so. \n\n 2. Name the capital of France. Answer:"
    assert texts_of(text, 5) == [
        "Count all the red balls. It is so. \n\n",
        " 2. Name the capital of France. Answer:",
    ]


def test_a_heading_goes_with_the_next_paragraph() -> None:
    text = "Answer all of these questions. \n\n Part two \n\n Name the capital of France."
    assert texts_of(text, 4) == ["Answer all of these questions. \n\n", " Part two \n\n Name the capital of France."]


def test_sentences_know_their_paragraph() -> None:
    text = "Here is one. Here is two. \n\n Here is three. Here is four."
    sentences = split_sentences(text, [end for _, end in in_words(text)], SentenceSettings(min_sentence_tokens=2))
    assert [(s.start, s.paragraph) for s in sentences] == [(0, 0), (3, 0), (7, 7), (10, 7)]
    assert [(s.start, s.paragraph) for s in cut_left(sentences, 4, 0, 2)] == [(0, 0), (3, 3), (6, 3)]
    assert [(s.start, s.paragraph) for s in cut_right(sentences, 9, 2)] == [(0, 0), (3, 0), (7, 7)]


def test_placed_tokens_are_those_of_the_plain_encoding(tiny_model: Path) -> None:
    prompts = ["red1 red2. Cold3", Conversation([{"role": "user", "content": "héllo 你好"}]), ""]
    form = PromptFormat(load_tokenizer(str(tiny_model)), PromptSettings("raw"))
    placed = form.encode_with_offsets(prompts)
    assert [p.tokens for p in placed] == form.encode(prompts)
    assert all(len(p.ends) == len(p.tokens) for p in placed)
    assert placed[1].text.startswith("<|user|>héllo")
    assert placed[0].ends[-1] == len("red1 red2. Cold3")
