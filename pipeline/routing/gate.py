"""Out-of-domain gate: how much the router's network sees of any class in a prompt."""

import torch


def gate_score(logits: torch.Tensor) -> torch.Tensor:
    """Negative free energy [n] of class logits [n x classes]: ``log sum exp`` (Liu et al. 2020, arXiv 2010.03759).

    Large when some class is clearly seen. Unlike the largest probability it is not forced up where all are small.
    """
    return logits.logsumexp(1)


def calibrate(scores: torch.Tensor, false_rejection: float) -> float:
    """The threshold that rejects the share ``false_rejection`` of held-out in-domain prompts with these scores."""
    return float(scores.double().quantile(false_rejection))
