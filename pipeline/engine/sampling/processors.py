"""What changes the logits of single rows before a token is chosen: penalties, and tokens that are ruled out."""

from collections.abc import Collection, Sequence

import numpy as np
import torch

from pipeline.engine.request import Sampling


class TokenCounts:
    """The distinct tokens of a row, and how often each stands in its answer (0: only in its prompt)."""

    def __init__(self, prompt: Sequence[int], max_new_tokens: int) -> None:
        known = np.unique(np.asarray(prompt, np.int64))
        self._places = {token: place for place, token in enumerate(known.tolist())}
        self._ids = torch.from_numpy(np.concatenate([known, np.zeros(max_new_tokens, np.int64)]))
        self._counts = torch.zeros(len(self._ids))

    def add(self, token: int) -> None:
        """Count a token of the answer."""
        place = self._places.setdefault(token, len(self._places))
        self._ids[place] = token
        self._counts[place] += 1

    @property
    def ids(self) -> torch.Tensor:
        """Token ids [tokens]."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> torch.Tensor:
        """Times each was generated [tokens], fp32."""
        return self._counts[: len(self._places)]


def penalise(logits: torch.Tensor, seen: Sequence[TokenCounts], settings: Sequence[Sampling]) -> None:
    """Apply the penalties of each row to logits [rows x vocab], in place.

    Tokens of prompt or answer: a positive logit is divided by ``repetition_penalty``, another multiplied (CTRL, arXiv
    1909.05858, as in transformers and vLLM). Then ``frequency_penalty`` times their count in the answer, and once
    ``presence_penalty`` if they stand in it, is taken off (OpenAI API reference, vLLM).
    """
    device = logits.device
    rows = torch.repeat_interleave(torch.tensor([len(row.ids) for row in seen])).to(device)
    ids = torch.cat([row.ids for row in seen]).to(device)
    counts = torch.cat([row.counts for row in seen]).to(device)

    def setting(name: str) -> torch.Tensor:
        return torch.tensor([getattr(own, name) for own in settings], dtype=logits.dtype, device=device)[rows]

    values, repetition = logits[rows, ids], setting("repetition_penalty")
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[rows, ids] = values - setting("frequency_penalty") * counts - setting("presence_penalty") * (counts > 0)


def rule_out(logits: torch.Tensor, rows: Sequence[int], tokens: Sequence[Collection[int]]) -> None:
    """Set the logits of some tokens of some rows to minus infinity, in place."""
    pairs = [(row, token) for row, some in zip(rows, tokens, strict=True) for token in some]
    if pairs:
        places = torch.tensor(pairs, device=logits.device)
        logits[places[:, 0], places[:, 1]] = -torch.inf


def allow_only(logits: torch.Tensor, rows: Sequence[int], allowed: Sequence[np.ndarray]) -> None:
    """Set the logits of tokens outside ``allowed`` (bool [vocab] for each of ``rows``) to minus infinity, in place."""
    if rows:
        places = torch.tensor(rows, device=logits.device)
        masks = torch.from_numpy(np.stack(allowed)).to(logits.device)
        logits[places] = logits[places].masked_fill(~masks, -torch.inf)
