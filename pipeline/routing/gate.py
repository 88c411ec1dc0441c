"""Out-of-domain gate: how near a prompt is to prompts that the router was trained on."""

import torch
from torch.nn.functional import normalize

NEIGHBOUR = 3  # its similarity is the score; one near neighbour alone may be chance
ACCEPTANCES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)  # shares of in-domain prompts with a threshold of their own


def gate_score(embedded: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Cosine [n] between mean embeddings [n x E] and their third nearest reference (unit vectors [m x E]).

    Distance to the k-th nearest training example (Sun et al. 2022, arXiv 2204.06507), here between mean token
    embeddings: layers nearer to the classes map unseen tasks onto seen ones and let more of them through.
    """
    similar = normalize(embedded, dim=1) @ references.T
    return similar.topk(min(NEIGHBOUR, len(references)), dim=1).values[:, -1]


def thresholds(scores: torch.Tensor) -> dict[str, float]:
    """The score that a share of held-out in-domain prompts reaches, for each of `ACCEPTANCES`."""
    return {str(share): float(scores.double().quantile(1 - share)) for share in ACCEPTANCES}
