"""The metrics: which answers each applies to, what it takes of an answer, and the figure of many answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .suite import Kind, Question
from .text_metrics import Floats, answers_found, bleu, bleu_statistics, chrf, exact_match, normalised, rouge


@dataclass(frozen=True)
class Likelihoods:
    """For each choice: the sum of log probabilities of its tokens, and how many they are."""

    sums: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What one configuration said to one question."""

    configuration: str
    question: Question
    output: str
    mixture: str | None = None
    finish_reason: str | None = None
    likelihoods: Likelihoods | None = None


def _mean(sums: Floats) -> Floats:
    """Percent [m] of sums [m x 2] of (1, share)."""
    percent: Floats = 100 * sums[:, 1] / sums[:, 0]
    return percent


@dataclass(frozen=True)
class Metric:
    """``statistics`` [k] of an answer add up over answers; ``value`` turns sums [m x k] into figures [m], 0 to 100."""

    name: str
    title: str
    applies: Callable[[Answer], bool]
    statistics: Callable[[Answer], Sequence[float]]
    value: Callable[[Floats], Floats] = _mean

    def of(self, answer: Answer) -> float:
        """The figure of one answer alone."""
        return float(self.value(np.array([self.statistics(answer)], dtype=np.float64))[0])


def predicted(likelihoods: Likelihoods, per_token: bool = False) -> int:
    """Place of the most likely choice, the first of equals; ``per_token``: by the mean over its tokens."""
    lengths = likelihoods.tokens if per_token else (1,) * len(likelihoods.tokens)
    scores = [total / length for total, length in zip(likelihoods.sums, lengths, strict=True)]
    return scores.index(max(scores))


def _mean_of(share: Callable[[Answer], float]) -> Callable[[Answer], tuple[float, float]]:
    return lambda answer: (1.0, share(answer))


def _exact(answer: Answer) -> float:
    return exact_match(answer.output, answer.question.reference)


def _likeliest_right(per_token: bool) -> Callable[[Answer], float]:
    def right(answer: Answer) -> float:
        if answer.likelihoods is None:
            return 0.0
        choice = answer.question.choices[predicted(answer.likelihoods, per_token)]
        return float(normalised(choice) == normalised(answer.question.reference))

    return right


def _texts(answer: Answer) -> tuple[str, str]:
    return answer.output, answer.question.reference


def _of_kind(*kinds: Kind) -> Callable[[Answer], bool]:
    return lambda answer: answer.question.kind in kinds


def metrics(likelihoods: bool) -> list[Metric]:
    """All metrics; ``likelihoods``: also those of choice likelihoods, where a model has scored the choices.

    `accuracy` is exact match of multiple choice. BLEU is that of the corpus, the others are means over the records.
    A question whose choices could not be scored counts as wrong.
    """
    mcq, text, composite = _of_kind("mcq"), _of_kind("qa", "composite"), _of_kind("composite")
    by_likelihood = [
        Metric("choice_accuracy", "likeliest choice", mcq, _mean_of(_likeliest_right(False))),
        Metric("choice_accuracy_per_token", "likeliest, per token", mcq, _mean_of(_likeliest_right(True))),
    ]
    return [
        Metric("accuracy", "accuracy", mcq, _mean_of(_exact)),
        *(by_likelihood if likelihoods else []),
        Metric("exact_match", "exact match", _of_kind("qa"), _mean_of(_exact)),
        Metric("bleu", "BLEU", text, lambda a: bleu_statistics(*_texts(a)), bleu),
        Metric("chrf", "chrF", text, _mean_of(lambda a: chrf(*_texts(a)))),
        Metric("rouge1", "ROUGE-1", text, _mean_of(lambda a: rouge(*_texts(a))[0])),
        Metric("rougeL", "ROUGE-L", text, _mean_of(lambda a: rouge(*_texts(a))[1])),
        Metric(
            "answers_found",
            "answers found",
            composite,
            _mean_of(lambda a: answers_found(a.output, a.question.answers)),
        ),
    ]
