"""Calibration of a router on held-out prompts: a temperature for its probabilities, thresholds for its gate."""

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, normalize

ACCEPTANCES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)  # shares of in-domain prompts with a threshold of their own
_BINS = 15


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Find the temperature T at which ``logits / T`` are likeliest for the ``targets`` (Guo et al., arXiv 1706.04599).

    Searched by golden section over log T in [-3, 3]: the loss has one minimum in 1/T.
    """

    def loss(log_t: float) -> float:
        return float(cross_entropy(logits.double() / math.exp(log_t), targets))

    low, high = -3.0, 3.0
    shrink = (math.sqrt(5) - 1) / 2
    for _ in range(40):
        left, right = high - shrink * (high - low), low + shrink * (high - low)
        if loss(left) <= loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)


@dataclass(frozen=True)
class Reliability:
    """Predictions in bins of confidence of equal width: their number, mean confidence and accuracy [bins] each.

    Empty bins have a confidence and accuracy of 0.
    """

    counts: torch.Tensor
    confidence: torch.Tensor
    accuracy: torch.Tensor

    @staticmethod
    def of(probabilities: torch.Tensor, targets: torch.Tensor, bins: int = _BINS) -> "Reliability":
        """Sort predictions, class ``probabilities`` [n x classes] with their ``targets`` [n], into bins."""
        confidence, predicted = probabilities.double().max(1)
        index = (confidence * bins).long().clamp(max=bins - 1)

        def sums(values: torch.Tensor) -> torch.Tensor:
            return torch.zeros(bins, dtype=torch.float64).index_add(0, index, values.double())

        counts = sums(torch.ones_like(confidence))
        filled = counts.clamp(min=1)
        return Reliability(counts.long(), sums(confidence) / filled, sums(predicted == targets) / filled)

    @property
    def error(self) -> float:
        """Mean distance of confidence and accuracy (expected calibration error; Naeini et al. 2015)."""
        return float(((self.confidence - self.accuracy).abs() * self.counts).sum() / self.counts.sum())


def held_out_metrics(logits: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Accuracy on held-out prompts as they are, and in other forms (the second half); calibration error on both.

    The temperature is fitted on the first of each two prompts and measured on the others.
    """
    right = (logits.argmax(1) == targets).float()
    half, other = slice(0, None, 2), slice(1, None, 2)
    scaled = logits[other] / fit_temperature(logits[half], targets[half])
    return {
        "held_out_accuracy": float(right[: len(right) // 2].mean()),
        "held_out_forms_accuracy": float(right[len(right) // 2 :].mean()),
        "ece": Reliability.of(logits[other].softmax(1), targets[other]).error,
        "ece_scaled": Reliability.of(scaled.softmax(1), targets[other]).error,
    }


def gate_score(embedded: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Cosine [n] between mean embeddings [n x E] and their nearest centroid (unit vectors [classes x E]).

    Distance to the nearest class mean (Lee et al. 2018, arXiv 1807.03888), here between mean token embeddings: layers
    nearer to the classes map unseen tasks onto seen ones and let more of them through.
    """
    return (normalize(embedded, dim=1) @ centroids.T).amax(1)


def gate_thresholds(scores: torch.Tensor) -> dict[str, float]:
    """Return, for each share in `ACCEPTANCES`, the score that this share of held-out in-domain prompts reaches."""
    return {str(share): float(scores.double().quantile(1 - share)) for share in ACCEPTANCES}
