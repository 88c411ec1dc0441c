"""The registry of metrics: `loraloom evaluate` computes, prints and writes every metric in `METRICS`.

A new metric is one entry here and, unless one line does it, a function of two texts in `text_metrics`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import Floats
from .suite import Kind, Question
from .text_metrics import answers_found, bleu, bleu_statistics, chrf, exact_match, normalised, rouge


@dataclass(frozen=True)
class Likelihoods:
    """For each choice: the sum of the log probabilities of its tokens, and their number."""

    sums: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Prediction:
    """The output of one configuration for one question."""

    configuration: str
    question: Question
    output: str
    mixture: str | None = None
    finish_reason: str | None = None
    likelihoods: Likelihoods | None = None


def _mean_percent(sums: Floats) -> Floats:
    """Percent [m] from sums [m x 2] of (1, share)."""
    percent: Floats = 100 * sums[:, 1] / sums[:, 0]
    return percent


@dataclass(frozen=True)
class Metric:
    """A metric of the questions of some ``kinds``.

    ``name``: key in JSON and column in Parquet; ``title``: header of tables. ``statistics`` [k] of a prediction are
    summed over predictions; ``value`` turns sums [m x k] into figures [m] from 0 to 100. ``needs_likelihoods``: only
    computed if choices were scored by the model.
    """

    name: str
    title: str
    kinds: tuple[Kind, ...]
    statistics: Callable[[Prediction], Sequence[float]]
    value: Callable[[Floats], Floats] = _mean_percent
    needs_likelihoods: bool = False

    def applies(self, prediction: Prediction) -> bool:
        """Whether the metric is defined for a prediction."""
        return prediction.question.kind in self.kinds

    def of(self, prediction: Prediction) -> float:
        """Return the figure of one prediction alone."""
        return float(self.value(np.array([self.statistics(prediction)], dtype=np.float64))[0])


def mean_metric(
    name: str,
    title: str,
    kinds: tuple[Kind, ...],
    share: Callable[[Prediction], float],
    needs_likelihoods: bool = False,
) -> Metric:
    """Create a metric that is the mean over the predictions of ``share``, from 0 to 1."""
    return Metric(name, title, kinds, lambda p: (1.0, share(p)), needs_likelihoods=needs_likelihoods)


def likeliest_choice(likelihoods: Likelihoods, per_token: bool = False) -> int:
    """Return the index of the likeliest choice, the first of equals; ``per_token``: by the mean over its tokens."""
    lengths = likelihoods.tokens if per_token else (1,) * len(likelihoods.tokens)
    scores = [total / length for total, length in zip(likelihoods.sums, lengths, strict=True)]
    return scores.index(max(scores))


def _exact(prediction: Prediction) -> float:
    return exact_match(prediction.output, prediction.question.reference)


def _likeliest_correct(prediction: Prediction, per_token: bool) -> float:
    """1 if the likeliest choice is the reference, else 0; also 0 if the choices could not be scored."""
    if prediction.likelihoods is None:
        return 0.0
    choice = prediction.question.choices[likeliest_choice(prediction.likelihoods, per_token)]
    return float(normalised(choice) == normalised(prediction.question.reference))


def _texts(prediction: Prediction) -> tuple[str, str]:
    return prediction.output, prediction.question.reference


_MCQ: tuple[Kind, ...] = ("mcq",)
_TEXT: tuple[Kind, ...] = ("qa", "composite")
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        mean_metric("accuracy", "accuracy", _MCQ, _exact),
        mean_metric("choice_accuracy", "likeliest choice", _MCQ, lambda p: _likeliest_correct(p, False), True),
        mean_metric(
            "choice_accuracy_per_token", "likeliest, per token", _MCQ, lambda p: _likeliest_correct(p, True), True
        ),
        mean_metric("exact_match", "exact match", ("qa",), _exact),
        Metric("bleu", "BLEU", _TEXT, lambda p: bleu_statistics(*_texts(p)), bleu),
        mean_metric("chrf", "chrF", _TEXT, lambda p: chrf(*_texts(p))),
        mean_metric("rouge1", "ROUGE-1", _TEXT, lambda p: rouge(*_texts(p))[0]),
        mean_metric("rougeL", "ROUGE-L", _TEXT, lambda p: rouge(*_texts(p))[1]),
        mean_metric(
            "answers_found", "answers found", ("composite",), lambda p: answers_found(p.output, p.question.answers)
        ),
    )
}
"""Metrics by name, in the order of columns and tables. `accuracy` is exact match of multiple choice; BLEU is that of
the corpus, the others are means over the predictions."""


def applicable_metrics(predictions: Iterable[Prediction]) -> list[Metric]:
    """Return the metrics that apply to at least one of the predictions."""
    predictions = list(predictions)
    scored = any(prediction.likelihoods for prediction in predictions)
    return [
        metric
        for metric in METRICS.values()
        if any(map(metric.applies, predictions)) and (scored or not metric.needs_likelihoods)
    ]
