"""Metrics of an output and a reference text: exact match, BLEU, chrF, ROUGE. Shares are 0 to 1, BLEU 0 to 100."""

import re
import string
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from .bootstrap import Floats

_EDGES = string.punctuation + string.whitespace
_END_MARKS = re.compile(r"\s*(?:(?:<\|[\w-]+\|>|</s>)\s*)+$")
# Without `effective_order` a task whose outputs all have less than four words has a BLEU of 0; if some are longer it
# changes nothing.
_BLEU = BLEU(effective_order=True)
_CHRF = CHRF()
_ROUGE = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
# Configurations share most of their answers.
_cached = lru_cache(maxsize=2**16)


def cleaned(text: str) -> str:
    """Remove end tokens such as ``<|endoftext|>`` or ``</s>`` from the end of a text.

    Data made for one model may hold its end token as text, which no metric should count. Applied to references,
    choices and outputs.
    """
    return _END_MARKS.sub("", text)


def normalised(text: str) -> str:
    """Lower the case, collapse white space, and strip punctuation at both ends."""
    return re.sub(r"\s+", " ", text).strip(_EDGES).lower()


def exact_match(output: str, reference: str) -> float:
    """Return 1 if the normalised texts are equal, else 0."""
    return float(normalised(output) == normalised(reference))


def answers_found(output: str, answers: Sequence[str]) -> float:
    """Return the share of the answers that occur in the output as whole words, both normalised.

    A weak metric: an output that repeats all choices, or the prompt, contains every answer, and a short answer ("no",
    "1") is often found by chance. Read it beside ROUGE and BLEU, which such outputs lower.
    """
    text = normalised(output)
    found = [re.search(rf"(?<!\w){re.escape(normalised(answer))}(?!\w)", text) is not None for answer in answers]
    return sum(found) / len(found)


@_cached
def bleu_statistics(output: str, reference: str) -> tuple[float, ...]:
    """Return the counts that BLEU sums: matching n-grams [4], n-grams [4], words of the output, of the reference."""
    score = _BLEU.sentence_score(output, [reference])
    return (*score.counts, *score.totals, score.sys_len, score.ref_len)


def bleu(sums: Floats) -> Floats:
    """Return corpus BLEU [m], as sacrebleu computes it, of summed `bleu_statistics` [m x 10]."""
    rows = np.rint(sums).astype(int).tolist()
    scores = [
        BLEU.compute_bleu(row[:4], row[4:8], row[8], row[9], smooth_method="exp", effective_order=True) for row in rows
    ]
    return np.array([float(score.score) for score in scores])


@_cached
def chrf(output: str, reference: str) -> float:
    """Return chrF2 of one output (character n-grams up to 6), as a share."""
    return float(_CHRF.sentence_score(output, [reference]).score) / 100


@_cached
def rouge(output: str, reference: str) -> tuple[float, float]:
    """Return F of ROUGE-1 and of ROUGE-L, without stemming; rouge-score reads only the letters a to z and digits."""
    scores = _ROUGE.score(reference, output)
    return float(scores["rouge1"].fmeasure), float(scores["rougeL"].fmeasure)
