"""Choosing the next token of each row from its final logits, with randomness of its own."""

import hashlib
from collections.abc import Sequence

import torch

from pipeline.engine.request import Sampling


def row_generator(seed: int, record_id: str, number: int = 0) -> torch.Generator:
    """A generator that depends on run seed, record id and answer number alone, never on batch, actor or restart."""
    return _generator(f"{seed}\0{record_id}", number)


def own_generator(seed: int, number: int = 0) -> torch.Generator:
    """A generator of a record's own seed: as in vLLM, equal requests with equal seeds have equal answers."""
    return _generator(f"{seed}", number)


def choose_tokens(
    logits: torch.Tensor, settings: Sequence[Sampling], generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Next token [rows] from logits [rows x vocab]: the largest, or drawn with one uniform number a row.

    Drawn by the inverse of the cumulative distribution over the vocabulary in fp64, so that a difference in the last
    bits of the logits (another batch, another machine) moves a border by as little.
    """
    drawn = [place for place, own in enumerate(settings) if own.draws]
    if len(drawn) == len(settings):
        return _draw(kept_probabilities(logits, settings), generators)
    tokens = logits.argmax(1)
    if drawn:
        places = torch.tensor(drawn, device=logits.device)
        kept = kept_probabilities(logits[places], [settings[place] for place in drawn])
        tokens[places] = _draw(kept, [generators[place] for place in drawn])
    return tokens


def kept_probabilities(logits: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    """Unnormalised probabilities [rows x vocab], fp64, 0 for tokens that are ruled out; each row by its own settings.

    In the order of vLLM's sampler: temperature, min-p (arXiv 2407.01082), top-k, top-p (arXiv 1904.09751). Each looks
    at what the one before has left. Of equally likely tokens top-k and top-p take those of lower ids first.
    """
    below = logits.double() - logits.amax(1, keepdim=True).double()  # first, as a tiny temperature makes more infinite
    probabilities = (below / _column(logits, settings, "temperature")).softmax(1)
    if any(own.min_p for own in settings):
        floor = probabilities.amax(1, keepdim=True) * _column(logits, settings, "min_p")
        probabilities = probabilities.where(probabilities >= floor, 0.0)
    if any(own.top_k for own in settings):
        probabilities = _top_k(probabilities, [own.top_k or logits.shape[1] for own in settings])
    if any(own.top_p < 1 for own in settings):
        probabilities = _top_p(probabilities, _column(logits, settings, "top_p"))
    return probabilities


def _top_k(probabilities: torch.Tensor, top_k: Sequence[int]) -> torch.Tensor:
    vocabulary = probabilities.shape[1]
    limited = [k for k in top_k if k < vocabulary]
    counts = torch.tensor([min(k, vocabulary) for k in top_k], device=probabilities.device).unsqueeze(1)
    ordered = probabilities.topk(max(limited, default=1), dim=1).values
    border = ordered.gather(1, counts.clamp(max=ordered.shape[1]) - 1)
    return _most_likely(probabilities, border.where(counts < vocabulary, 0.0), counts)


def _top_p(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The fewest tokens that reach ``top_p`` [rows x 1] of the total."""
    total = probabilities.sum(1, keepdim=True)
    # Tokens with less than an even share of 1 - p are outside, all of them together: only the others are sorted.
    candidates = (probabilities > (1 - top_p) / probabilities.shape[1] * total) & (top_p < 1)
    ordered = probabilities.topk(max(1, int(candidates.sum(1).max())), dim=1).values
    counts = (ordered.cumsum(1) - ordered < top_p * total).sum(1, keepdim=True)
    border = ordered.gather(1, counts - 1).where(top_p < 1, 0.0)
    return _most_likely(probabilities, border, counts.where(top_p < 1, probabilities.shape[1]))


def _most_likely(probabilities: torch.Tensor, border: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The ``counts`` [rows x 1] most likely tokens of each row, of which ``border`` [rows x 1] is the least likely."""
    kept = probabilities >= border
    if (kept.sum(1, keepdim=True) > counts).any():
        tied = probabilities == border
        room = counts - (probabilities > border).sum(1, keepdim=True)
        kept &= ~tied | (tied.cumsum(1) <= room)
    return probabilities.where(kept, 0.0)


def _column(logits: torch.Tensor, settings: Sequence[Sampling], name: str) -> torch.Tensor:
    values = [getattr(own, name) for own in settings]
    return torch.tensor(values, dtype=torch.float64, device=logits.device).unsqueeze(1)


def _draw(weights: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1]
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    # The product may round up to the total, which is the place of no token.
    target = torch.minimum(uniform.to(weights.device) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)


def _generator(name: str, number: int) -> torch.Generator:
    # The first answer has no salt: it is the same whether there are others or not.
    salt = number.to_bytes(8, "little")
    digest = hashlib.blake2b(name.encode(), digest_size=8, salt=salt).digest()
    # torch takes seeds of 63 bits.
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
