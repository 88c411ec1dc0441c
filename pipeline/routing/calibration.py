"""Calibration of the router's probabilities: one temperature, and the error that it leaves."""

import math

import torch
from torch.nn.functional import cross_entropy

_BINS = 15


def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """The temperature that makes ``logits / T`` likeliest for the ``targets`` (Guo et al. 2017, arXiv 1706.04599).

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


def expected_calibration_error(probabilities: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean distance of confidence and accuracy over 15 bins of equal width (ECE; Naeini et al. 2015)."""
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == targets).double()
    places = (confidence * _BINS).long().clamp(max=_BINS - 1)
    gaps = torch.zeros(_BINS, dtype=torch.float64).index_add(0, places, confidence - right)
    return float(gaps.abs().sum() / len(targets))
