"""Out-of-domain gate: how near a prompt's features are to those of the nearest class."""

import torch
from torch.nn.functional import normalize


def class_centroids(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Mean unit feature vector of each class, as unit vectors [classes x F]."""
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, labels, normalize(features, dim=1))
    return normalize(sums, dim=1)


def gate_score(features: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Largest cosine similarity to a class centroid [n]; 1 is a typical prompt of some class."""
    return (normalize(features, dim=1) @ centroids.T).amax(1)


def calibrate(scores: torch.Tensor, false_rejection: float) -> float:
    """The threshold that rejects the share ``false_rejection`` of held-out in-domain prompts with these scores."""
    return float(scores.double().quantile(false_rejection))
