"""Change the logits of single rows before a token is chosen: penalties and masked tokens."""

from collections.abc import Collection, Sequence

import numpy as np
import torch

from pipeline.engine.request import Sampling


class TokenCounts:
    """Distinct tokens of a sequence, with their counts in the answer (0: only in the prompt)."""

    def __init__(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        distinct = np.unique(np.asarray(prompt, np.int64))
        self._indices = {token: index for index, token in enumerate(distinct.tolist())}
        self._ids = torch.from_numpy(np.concatenate([distinct, np.zeros(max_new_tokens, np.int64)]))
        self._counts = torch.zeros(len(self._ids))

    def add(self, token: int) -> None:
        """Count a token of the answer."""
        index = self._indices.setdefault(token, len(self._indices))
        self._ids[index] = token
        self._counts[index] += 1

    @property
    def ids(self) -> torch.Tensor:
        """Token ids [tokens]."""
        return self._ids[: len(self._indices)]

    @property
    def counts(self) -> torch.Tensor:
        """Count of each in the answer [tokens], fp32."""
        return self._counts[: len(self._indices)]


def apply_penalties(
    logits: torch.Tensor, rows: Sequence[int], token_counts: Sequence[TokenCounts], settings: Sequence[Sampling]
) -> None:
    """Apply penalties to the logits of each of ``rows``, in place.

    For tokens of prompt or answer, a positive logit is divided by ``repetition_penalty``, a negative one multiplied by
    it (CTRL, arXiv 1909.05858, as in transformers and vLLM). Then ``frequency_penalty`` times the token's count in the
    answer is subtracted, and ``presence_penalty`` if that count is not 0 (OpenAI API reference, vLLM).
    """
    if not rows:
        return
    device = logits.device
    repeats = torch.tensor([len(row.ids) for row in token_counts])
    indices = torch.tensor(rows).repeat_interleave(repeats).to(device)
    ids = torch.cat([row.ids for row in token_counts]).to(device)
    counts = torch.cat([row.counts for row in token_counts]).to(device)

    def setting(name: str) -> torch.Tensor:
        values = torch.tensor([getattr(own, name) for own in settings], dtype=logits.dtype)
        return values.repeat_interleave(repeats).to(device)

    values, repetition = logits[indices, ids], setting("repetition_penalty")
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[indices, ids] = values - setting("frequency_penalty") * counts - setting("presence_penalty") * (counts > 0)


def mask_tokens(logits: torch.Tensor, rows: Sequence[int], tokens: Sequence[Collection[int]]) -> None:
    """Set the logits of ``tokens`` of each of ``rows`` to minus infinity, in place."""
    pairs = [(row, token) for row, masked in zip(rows, tokens, strict=True) for token in masked]
    if pairs:
        indices = torch.tensor(pairs, device=logits.device)
        logits[indices[:, 0], indices[:, 1]] = -torch.inf


def allow_only(logits: torch.Tensor, rows: Sequence[int], allowed: Sequence[np.ndarray]) -> None:
    """Set the logits of tokens outside ``allowed`` (bool [vocab] for each of ``rows``) to minus infinity, in place."""
    if rows:
        indices = torch.tensor(rows, device=logits.device)
        masks = torch.from_numpy(np.stack(allowed)).to(logits.device)
        logits[indices] = logits[indices].masked_fill(~masks, -torch.inf)
