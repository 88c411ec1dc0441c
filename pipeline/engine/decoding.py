"""From logits to the next token of each row, and from a row's tokens to its completion."""

from collections.abc import Sequence
from typing import Any

import torch

from ..records import Completion
from .request import Failure, Sampling
from .rows import Row
from .sampling import choose_tokens


class Decoder:
    """Chooses tokens, and knows when an answer has ended."""

    def __init__(self, tokenizer: Any, end_tokens: set[int], sampling: Sampling) -> None:
        self.tokenizer = tokenizer
        self.end_tokens = end_tokens
        self.sampling = sampling
        # A token is one byte at least and a character four at most: so many tokens hold the longest stop string.
        self._tail = 4 * max(map(len, sampling.stop), default=0) + 8

    def advance(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Append the next token by logits [rows x vocab] to each row, and say of rows that end why (``ended``)."""
        finite = logits.sum(1).isfinite().tolist()  # one reading of all logits, where `isfinite` needs four
        if not all(finite):
            finite = logits.isfinite().all(1).tolist()
            logits = logits.nan_to_num()
        tokens = choose_tokens(self._allowed(rows, logits), self.sampling, [row.generator for row in rows])
        for row, token, good in zip(rows, tokens.tolist(), finite, strict=True):
            if not good:
                row.ended = "failed"
                continue
            row.new_tokens.append(token)
            row.ended = self._ended(row)

    def completion(self, row: Row) -> Completion | Failure:
        """What a row that ended has come to."""
        if row.ended == "failed":
            return Failure("NonFiniteLogits", "the model gave NaN or infinite logits for this record")
        text, _ = self._cut_at_stop(self._text(row.new_tokens))
        prompt = len(row.request.tokens)
        sentences = tuple((prompt + place, mixture) for place, mixture in row.sentences[1:])
        return Completion(text, str(row.ended), prompt, len(row.new_tokens), sentences)

    def _allowed(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
        """Logits with the end tokens ruled out for rows that are still below ``min_new_tokens``."""
        short = [i for i, row in enumerate(rows) if len(row.new_tokens) < self.sampling.min_new_tokens]
        if not short:
            return logits
        logits = logits.clone()
        logits[torch.tensor(short).unsqueeze(1), torch.tensor(sorted(self.end_tokens))] = torch.finfo(logits.dtype).min
        return logits

    def _ended(self, row: Row) -> str | None:
        if row.new_tokens[-1] in self.end_tokens:
            return "stop"
        # Only the last tokens are looked at: the text of all of them at each token would be quadratic.
        last = row.new_tokens[-self._tail :]
        if self.sampling.stop and self._cut_at_stop(self._text(last))[1]:
            return "stop"
        return "length" if len(row.new_tokens) >= self.sampling.max_new_tokens else None

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _cut_at_stop(self, text: str) -> tuple[str, bool]:
        places = [place for stop in self.sampling.stop if (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)
