"""Text metrics against values worked out by hand."""

import math

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from pipeline.evaluation.text_metrics import (
    answers_found,
    bleu,
    bleu_statistics,
    chrf,
    cleaned,
    exact_match,
    normalised,
    rouge,
)


def corpus_bleu(pairs: list[tuple[str, str]]) -> float:
    return float(bleu(np.array([bleu_statistics(*pair) for pair in pairs], dtype=float).sum(0, keepdims=True))[0])


def test_case_spaces_and_punctuation_at_the_ends_do_not_count() -> None:
    assert normalised("  The  Hobbit.\n") == normalised("the hobbit")
    assert normalised("U.S.") != normalised("US")
    assert (exact_match("Yes.", "yes"), exact_match("Yes, it is", "yes"), exact_match("", "yes")) == (1, 0, 0)


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("Six survived .<|endoftext|>", "Six survived ."),
        ("a <|im_end|>\n<|endoftext|> \n", "a"),
        ("a</s>", "a"),
        ("a <|endoftext|> b", "a <|endoftext|> b"),
        ("1 < 2 |> 3 ", "1 < 2 |> 3 "),
        ("<|endoftext|>", ""),
    ],
)
def test_marks_of_the_end_are_stripped_from_the_end_alone(text: str, rest: str) -> None:
    assert cleaned(text) == rest


def test_bleu_of_a_short_output_counts_the_orders_that_it_has() -> None:
    # 3 of 3 words, 2 of 2 pairs, 1 of 1 triple, no quadruple; brevity penalty exp(1 - 4/3).
    assert corpus_bleu([("the cat sat", "the cat sat down")]) == pytest.approx(100 * math.exp(-1 / 3))
    assert corpus_bleu([("thirteen", "thirteen")]) == pytest.approx(100)
    assert corpus_bleu([("", "thirteen")]) == 0


def test_bleu_of_a_corpus_adds_up_counts() -> None:
    # Words 5 of 6, pairs 3 of 4, triples 1 of 2, no quadruple; 6 words each.
    pairs = [("a b c", "a b c"), ("d e x", "d e f")]
    assert corpus_bleu(pairs) == pytest.approx(100 * (5 / 6 * 3 / 4 * 1 / 2) ** (1 / 3))


def test_bleu_is_that_of_sacrebleu() -> None:
    outputs = ["the quick brown fox jumps over the dog", "it is raining today , again", "no", ""]
    references = ["the quick brown fox jumped over the lazy dog", "it rains today again", "no", "yes it is"]
    expected = BLEU(effective_order=True).corpus_score(outputs, [references]).score
    assert corpus_bleu(list(zip(outputs, references, strict=True))) == pytest.approx(expected)


def test_chrf_by_hand() -> None:
    # Letters: 1 of 2 both ways; pairs: 0 of 1; the mean of both orders is 1/4 both ways, and so is F.
    assert chrf("ab", "ac") == pytest.approx(0.25)
    assert chrf("same", "same") == pytest.approx(1)


def test_rouge_by_hand() -> None:
    # "the cat": precision 2/3, recall 2/4.
    assert rouge("the cat sat", "the cat lay down") == pytest.approx((4 / 7, 4 / 7))
    # The same words in another order: the longest common subsequence has one word of two.
    assert rouge("cat the", "the cat") == pytest.approx((1, 0.5))
    # No stemming.
    assert rouge("cats", "cat") == (0, 0)


def test_answers_are_found_as_whole_words() -> None:
    assert answers_found("1. Yes\n2. J. D. Salinger.", ["yes", "J. D. Salinger"]) == 1
    assert answers_found("yesterday 15", ["Yes", "5"]) == 0
    assert answers_found("It is no. 5 (five)", ["5", "four"]) == 0.5
    assert answers_found("(a+b) is it", ["a+b", "is"]) == 1
