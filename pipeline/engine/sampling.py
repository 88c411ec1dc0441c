"""Choosing the next token of each row, with randomness of its own."""

import hashlib

import torch

from .request import Sampling


def row_generator(seed: int, record_id: str) -> torch.Generator:
    """A generator that depends on run seed and record id alone, never on batch, actor or restart."""
    digest = hashlib.blake2b(f"{seed}\0{record_id}".encode(), digest_size=8).digest()
    # torch takes seeds of 63 bits.
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def choose_tokens(logits: torch.Tensor, settings: Sampling, generators: list[torch.Generator]) -> torch.Tensor:
    """Next token [rows] from logits [rows x vocab]: the largest, or drawn with one uniform number a row.

    Drawn by the inverse of the cumulative distribution in fp64, so that a difference in the last bits of the logits
    (another batch, another machine) moves a border by as little.
    """
    if settings.temperature == 0:
        return logits.argmax(1)
    probabilities = (logits.double() / settings.temperature).softmax(1)
    if settings.top_k or settings.top_p < 1:
        return _draw_from_top(probabilities, settings, generators)
    return _draw(probabilities, generators)


def _draw_from_top(probabilities: torch.Tensor, settings: Sampling, generators: list[torch.Generator]) -> torch.Tensor:
    """Top-k, then top-p (arXiv 1904.09751): the fewest tokens whose probabilities reach ``top_p``."""
    most = settings.top_k or probabilities.shape[1]
    ordered, tokens = probabilities.topk(min(most, probabilities.shape[1]), dim=1)
    share = ordered / ordered.sum(1, keepdim=True)
    before = share.cumsum(1) - share
    place = _draw(share * (before < settings.top_p), generators)
    return tokens.gather(1, place.unsqueeze(1)).squeeze(1)


def _draw(weights: torch.Tensor, generators: list[torch.Generator]) -> torch.Tensor:
    cumulative = weights.cumsum(1)
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    target = uniform.to(weights.device) * cumulative[:, -1]
    place = torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)
    # The target may round up to the total: take the last token that has weight.
    last = (weights > 0).long().cumsum(1).argmax(1)
    return torch.minimum(place, last)
