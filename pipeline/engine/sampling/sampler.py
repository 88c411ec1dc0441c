"""Choose the next token of each row from its final logits, with a random generator per answer."""

import hashlib
from collections.abc import Sequence

import torch

from pipeline.engine.request import Request, Sampling


def request_generator(request: Request, sampling: Sampling, seed: int) -> torch.Generator:
    """Make the random generator of one answer. It never depends on the batch, the actor or a restart.

    Seeded by the request's own seed (as in vLLM, equal requests with equal seeds have equal answers), or else by the
    run's ``seed`` and the request's id.
    """
    name = f"{seed}\0{request.id}" if sampling.seed is None else f"{sampling.seed}"
    # The first answer has no salt, so that it is the same for every n.
    salt = request.answer_index.to_bytes(8, "little")
    digest = hashlib.blake2b(name.encode(), digest_size=8, salt=salt).digest()
    # torch accepts seeds of 63 bits.
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def choose_tokens(
    logits: torch.Tensor, settings: Sequence[Sampling], generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Choose the next token [rows] from logits [rows x vocab]: the argmax, or a draw with one uniform number per row.

    A draw inverts the cumulative distribution over the vocabulary in fp64, so that a difference in the last bits of the
    logits (another batch, another machine) hardly moves the borders between tokens.
    """
    random_rows = [row for row, own in enumerate(settings) if own.is_random]
    if len(random_rows) == len(settings):
        return _draw(truncated_probabilities(logits, settings), generators)
    tokens = logits.argmax(1)
    if random_rows:
        indices = torch.tensor(random_rows, device=logits.device)
        probabilities = truncated_probabilities(logits[indices], [settings[row] for row in random_rows])
        tokens[indices] = _draw(probabilities, [generators[row] for row in random_rows])
    return tokens


def truncated_probabilities(logits: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    """Unnormalised probabilities [rows x vocab], fp64, 0 for excluded tokens; each row by its own settings.

    In the order of vLLM's sampler: temperature, min-p (arXiv 2407.01082), top-k, top-p (arXiv 1904.09751). Each applies
    to the result of the one before. Among equally likely tokens top-k and top-p keep those with lower ids.
    """
    # The maximum is subtracted first: divided by a tiny temperature, larger logits would be infinite.
    shifted = logits.double() - logits.amax(1, keepdim=True).double()
    probabilities = (shifted / _column(logits, settings, "temperature")).softmax(1)
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
    threshold = ordered.gather(1, counts.clamp(max=ordered.shape[1]) - 1)
    return _most_likely(probabilities, threshold.where(counts < vocabulary, 0.0), counts)


def _top_p(probabilities: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Keep the fewest tokens that reach ``top_p`` [rows x 1] of the total."""
    total = probabilities.sum(1, keepdim=True)
    # Tokens below an even share of 1 - p are excluded even all together: only the others are sorted.
    candidates = (probabilities > (1 - top_p) / probabilities.shape[1] * total) & (top_p < 1)
    ordered = probabilities.topk(max(1, int(candidates.sum(1).max())), dim=1).values
    counts = (ordered.cumsum(1) - ordered < top_p * total).sum(1, keepdim=True)
    threshold = ordered.gather(1, counts - 1).where(top_p < 1, 0.0)
    return _most_likely(probabilities, threshold, counts.where(top_p < 1, probabilities.shape[1]))


def _most_likely(probabilities: torch.Tensor, threshold: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Keep the ``counts`` [rows x 1] most likely tokens; ``threshold`` [rows x 1]: probability of the last of them."""
    kept = probabilities >= threshold
    if (kept.sum(1, keepdim=True) > counts).any():
        tied = probabilities == threshold
        max_tied = counts - (probabilities > threshold).sum(1, keepdim=True)
        kept &= ~tied | (tied.cumsum(1) <= max_tied)
    return probabilities.where(kept, 0.0)


def _column(logits: torch.Tensor, settings: Sequence[Sampling], name: str) -> torch.Tensor:
    values = [getattr(own, name) for own in settings]
    return torch.tensor(values, dtype=torch.float64, device=logits.device).unsqueeze(1)


def _draw(weights: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1]
    uniform = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    # The product may round up to the total, which is beyond the last token.
    target = torch.minimum(uniform.to(weights.device) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target.unsqueeze(1), right=True).squeeze(1)
