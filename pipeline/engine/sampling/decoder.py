"""From logits to tokens to answers: each row by its own settings, rows of like needs together."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from pipeline.engine.overrides import sampling_problem
from pipeline.engine.request import Failure, Request, Sampling
from pipeline.engine.sequence import Row
from pipeline.records import Completion, TokenLogprob

from .constraints import Constraints
from .processors import TokenCounts, allow_only, penalise, rule_out
from .sampler import choose_tokens, own_generator, row_generator
from .stop import StopScanner


class Decoder:
    """Chooses the tokens of rows, and knows when they end.

    The order is that of vLLM: what is ruled out (constraint, `Sampling.min_new_tokens`), penalties, temperature, min-p,
    top-k, top-p. Log probabilities are the model's own, before all of these. All that it knows of a row stands in the
    row. ``end_tokens``: the model's; ``seed``: of the run; ``sampling``: of requests without their own.
    """

    def __init__(
        self,
        tokenizer: Any,
        constraints: Constraints,
        vocabulary: int,
        end_tokens: set[int],
        seed: int,
        sampling: Sampling,
    ) -> None:
        self._tokenizer = tokenizer
        self._constraints = constraints
        self._vocabulary = vocabulary
        self._end_tokens = end_tokens
        self._seed = seed
        self._sampling = sampling
        self._token_text = cache(lambda token: self._text([token], special=True))

    def sampling_of(self, request: Request) -> Sampling:
        """The settings of a request: its own, else those of all."""
        return request.sampling or self._sampling

    def problem(self, request: Request) -> Failure | None:
        """Why the settings of a request cannot be met; None where they can."""
        sampling = self.sampling_of(request)
        problem = sampling_problem(sampling)
        if sampling.choices:
            problem = "choices are scored, not generated (pipeline.engine.answer)"
        if any(not 0 <= token < self._vocabulary for token in sampling.stop_token_ids):
            problem = f"stop_token_ids: outside the model's vocabulary of {self._vocabulary}"
        if not problem and sampling.constraint:
            problem = self._constraints.problem(sampling.constraint)
        return Failure("BadSampling", problem) if problem else None

    def begin(self, row: Row) -> Row:
        """Give a row that has no tokens yet what its settings need."""
        request = row.request
        sampling = row.sampling = self.sampling_of(request)
        row.generator = request_generator(request, sampling, self._seed)
        if sampling.penalises:
            row.counts = TokenCounts(request.tokens, sampling.max_new_tokens)
        if sampling.stop:
            row.stops = StopScanner(self._text, sampling.stop, sampling.min_new_tokens)
        if sampling.constraint:
            row.matcher = self._constraints.matcher(sampling.constraint)
        return row

    def advance(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
        """Next token [rows] of each row from its logits [rows x vocab], fp32; appends it, and marks rows that end.

        Rows that had ended before stay as they are, and get any token.
        """
        finite = logits.sum(1).isfinite().tolist()  # one reading of all logits, where `isfinite` needs four
        if not all(finite):
            finite = logits.isfinite().all(1).tolist()
            logits = logits.nan_to_num()
        tokens = self._choose(rows, logits)
        self._note_logprobs(rows, logits, tokens)
        for row, token, good in zip(rows, tokens.tolist(), finite, strict=True):
            if row.ended:
                continue
            if good:
                self.append(row, token)
            else:
                _fail(row, "NonFiniteLogits", "the model gave NaN or infinite logits for this record")
        return tokens

    def append(self, row: Row, token: int) -> None:
        """Add the next token to a row that has not ended, and mark it where it ends with that."""
        if row.matcher and not row.matcher.add(token):
            _fail(row, "ConstraintFailed", f"after {len(row.new_tokens)} tokens: {row.matcher.error}")
            return
        row.new_tokens.append(token)
        if row.counts:
            row.counts.add(token)
        if self._stops(row, token):
            row.ended = "stop"
        elif len(row.new_tokens) >= row.sampling.max_new_tokens:
            row.ended = "length"

    def completion(self, row: Row) -> Completion | Failure:
        """What came of a row that has ended."""
        if row.failure:
            return row.failure
        prompt = len(row.request.tokens)
        return Completion(
            self._answer_text(row),
            str(row.ended),
            prompt,
            len(row.new_tokens),
            tuple((prompt + place, mixture) for place, mixture in row.sentences[1:]),
            None if row.sampling.logprobs is None else self._logprobs(row),
        )

    def _choose(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
        special = [place for place, row in enumerate(rows) if not row.ended and not row.is_plain]
        if not special:
            return logits.argmax(1)
        chosen = [rows[place] for place in special]
        if len(chosen) == len(rows):
            return self._choose_special(chosen, logits.clone())
        places = torch.tensor(special, device=logits.device)
        tokens = logits.argmax(1)
        tokens[places] = self._choose_special(chosen, logits[places])
        return tokens

    def _choose_special(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
        """Next tokens of rows that are not plain; changes the logits."""
        matched = [(place, row.matcher.allowed()) for place, row in enumerate(rows) if row.matcher]
        allow_only(logits, [place for place, _ in matched], [allowed for _, allowed in matched])
        short = [place for place, row in enumerate(rows) if row.must_go_on]
        rule_out(logits, short, [self._ends_of(rows[place]) for place in short])
        counted = [(place, row.counts) for place, row in enumerate(rows) if row.counts]
        if counted:
            places = [place for place, _ in counted]
            part = logits[places]
            penalise(part, [counts for _, counts in counted], [rows[place].sampling for place in places])
            logits[places] = part
        return choose_tokens(logits, [row.sampling for row in rows], [row.generator for row in rows])

    def _note_logprobs(self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor) -> None:
        asking = [
            (p, r, r.sampling.logprobs) for p, r in enumerate(rows) if not r.ended and r.sampling.logprobs is not None
        ]
        if not asking:
            return
        places = torch.tensor([place for place, _, _ in asking], device=logits.device)
        logprobs = logits[places].log_softmax(1)
        of_chosen = logprobs.gather(1, tokens[places].unsqueeze(1)).squeeze(1).tolist()
        most = max(count for _, _, count in asking)
        values, top = (found.tolist() for found in logprobs.topk(most, dim=1))
        for (_, row, count), own, others, their in zip(asking, of_chosen, top, values, strict=True):
            row.logprobs.append((own, list(zip(others[:count], their[:count], strict=True))))

    def _stops(self, row: Row, token: int) -> bool:
        if token in self._end_tokens or token in row.sampling.stop_token_ids:
            return True
        if row.stops and row.stops.add(token):
            return True
        return row.matcher is not None and row.matcher.complete

    def _ends_of(self, row: Row) -> set[int]:
        return self._end_tokens.union(row.sampling.stop_token_ids)

    def _answer_text(self, row: Row) -> str:
        if row.stops and row.stops.text is not None:
            return row.stops.text
        ends = self._ends_of(row)
        return self._text(row.new_tokens[:-1] if row.new_tokens[-1] in ends else row.new_tokens)

    def _logprobs(self, row: Row) -> tuple[TokenLogprob, ...]:
        def named(token: int, value: float) -> TokenLogprob:
            return TokenLogprob(token, self._token_text(token), value)

        return tuple(
            TokenLogprob(token, self._token_text(token), own, tuple(named(*other) for other in top))
            for token, (own, top) in zip(row.new_tokens, row.logprobs, strict=True)
        )

    def _text(self, tokens: Sequence[int], special: bool = False) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=not special))


def request_generator(request: Request, sampling: Sampling, seed: int) -> torch.Generator:
    """The randomness of one answer: of the request's own seed, else of the run's seed and the request's id."""
    if sampling.seed is not None:
        return own_generator(sampling.seed, request.number)
    return row_generator(seed, request.id, request.number)


def _fail(row: Row, error_type: str, message: str) -> None:
    row.ended = "failed"
    row.failure = Failure(error_type, message)
