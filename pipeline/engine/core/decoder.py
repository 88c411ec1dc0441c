"""From logits to tokens to answers: each sequence by its own settings, sequences with the same needs together."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from pipeline.engine.overrides import sampling_problem
from pipeline.engine.request import Failure, Outcome, Request, Sampling
from pipeline.engine.sampling.constraints import Constraints
from pipeline.engine.sampling.processors import TokenCounts, allow_only, apply_penalties, mask_tokens
from pipeline.engine.sampling.sampler import choose_tokens, request_generator
from pipeline.engine.sampling.stop import StopScanner
from pipeline.engine.sequence import Sequence
from pipeline.records import Completion, TokenLogprob


@dataclass(eq=False)
class Decoder:
    """Chooses the next tokens of sequences, and decides when they finish.

    In the order of vLLM: masked tokens (constraint, `Sampling.min_new_tokens`), penalties, temperature, min-p, top-k,
    top-p. Log probabilities are the model's own, before all of these. All state of a sequence is in the sequence.
    ``end_tokens``: the model's; ``seed``: of the run; ``sampling``: of requests without their own.
    """

    tokenizer: Any
    constraints: Constraints
    vocabulary: int
    end_tokens: set[int]
    seed: int
    sampling: Sampling

    def __post_init__(self) -> None:
        self._token_text = cache(lambda token: self._text([token], special=True))

    def sampling_of(self, request: Request) -> Sampling:
        """Return the settings of a request: its own, or else the defaults."""
        return request.sampling or self.sampling

    def problem(self, request: Request) -> Failure | None:
        """Return why the settings of a request cannot be met; None if they can."""
        sampling = self.sampling_of(request)
        problem = sampling_problem(sampling)
        if sampling.choices:
            problem = "choices are scored, not generated (pipeline.engine.scoring.choices.choose)"
        if any(not 0 <= token < self.vocabulary for token in sampling.stop_token_ids):
            problem = f"stop_token_ids: outside the model's vocabulary of {self.vocabulary}"
        if not problem and sampling.constraint:
            problem = self.constraints.problem(sampling.constraint)
        return Failure("BadSampling", problem) if problem else None

    def start(self, request: Request) -> Sequence:
        """Make the sequence of a request, with the state that its settings need."""
        sampling = self.sampling_of(request)
        seq = Sequence(request, sampling, request_generator(request, sampling, self.seed))
        if sampling.has_penalties:
            seq.token_counts = TokenCounts(request.tokens, sampling.max_new_tokens)
        if sampling.stop:
            seq.stop_scanner = StopScanner(self._text, sampling.stop, sampling.min_new_tokens)
        if sampling.constraint:
            seq.matcher = self.constraints.matcher(sampling.constraint)
        return seq

    def choose(self, seqs: list[Sequence], logits: torch.Tensor) -> torch.Tensor:
        """Choose and append the next token of each sequence; return them [sequences].

        ``logits`` [sequences x vocab], fp32. Sequences that finish get their finish reason. Those that had finished
        before are left as they are, and their token has no meaning.
        """
        total = logits.logsumexp(1)  # not finite if a logit of the row is NaN or infinite
        finite = total.isfinite().tolist()
        if not all(finite):
            logits = logits.nan_to_num()
        tokens = self._choose(seqs, logits)
        logprobs = (logits.gather(1, tokens.unsqueeze(1)).squeeze(1) - total).tolist()
        self._add_logprobs(seqs, logits, total, logprobs)
        for seq, token, logprob, is_finite in zip(seqs, tokens.tolist(), logprobs, finite, strict=True):
            if seq.finish_reason:
                continue
            if is_finite:
                self.append(seq, token, logprob)
            else:
                seq.fail(Failure("NonFiniteLogits", "the model gave NaN or infinite logits for this record"))
        return tokens

    def append(self, seq: Sequence, token: int, logprob: float) -> None:
        """Append the next token to an unfinished sequence, and finish the sequence if the token ends it.

        ``logprob``: natural log probability of the token by the model.
        """
        if seq.matcher and not seq.matcher.add(token):
            seq.fail(Failure("ConstraintFailed", f"after {len(seq.new_tokens)} tokens: {seq.matcher.error}"))
            return
        seq.new_tokens.append(token)
        seq.sum_logprob += logprob
        if seq.token_counts:
            seq.token_counts.add(token)
        if (
            token in self.end_tokens
            or token in seq.sampling.stop_token_ids
            or (seq.stop_scanner and seq.stop_scanner.add(token))
            or (seq.matcher and seq.matcher.is_complete)
        ):
            seq.finish_reason = "stop"
        elif len(seq.new_tokens) >= seq.sampling.max_new_tokens:
            seq.finish_reason = "length"

    def outcome(self, seq: Sequence) -> Outcome:
        """Return the outcome of a finished sequence."""
        if seq.failure:
            return seq.failure
        prompt_length = len(seq.request.tokens)
        return Completion(
            self._answer_text(seq),
            str(seq.finish_reason),
            prompt_length,
            len(seq.new_tokens),
            tuple((prompt_length + start, mixture) for start, mixture in seq.sentences[1:]),
            None if seq.sampling.logprobs is None else self._logprobs(seq),
            answer_logprob=seq.sum_logprob / len(seq.new_tokens),
        )

    def _choose(self, seqs: list[Sequence], logits: torch.Tensor) -> torch.Tensor:
        rows = [row for row, seq in enumerate(seqs) if not seq.finish_reason and not seq.is_plain_greedy]
        if not rows:
            return logits.argmax(1)
        if len(rows) == len(seqs):
            return self._choose_special(seqs, logits.clone())
        indices = torch.tensor(rows, device=logits.device)
        tokens = logits.argmax(1)
        tokens[indices] = self._choose_special([seqs[row] for row in rows], logits[indices])
        return tokens

    def _choose_special(self, seqs: list[Sequence], logits: torch.Tensor) -> torch.Tensor:
        """Choose next tokens that are not simply the argmax; changes the logits."""
        matched = [(row, seq.matcher.allowed()) for row, seq in enumerate(seqs) if seq.matcher]
        allow_only(logits, [row for row, _ in matched], [allowed for _, allowed in matched])
        short = [row for row, seq in enumerate(seqs) if seq.is_below_min_tokens]
        mask_tokens(logits, short, [self._end_tokens_of(seqs[row]) for row in short])
        counted = [(row, seq.token_counts) for row, seq in enumerate(seqs) if seq.token_counts]
        rows = [row for row, _ in counted]
        apply_penalties(logits, rows, [counts for _, counts in counted], [seqs[row].sampling for row in rows])
        return choose_tokens(logits, [seq.sampling for seq in seqs], [seq.generator for seq in seqs])

    def _add_logprobs(
        self, seqs: list[Sequence], logits: torch.Tensor, total: torch.Tensor, chosen: list[float]
    ) -> None:
        """Note the requested log probabilities: of the ``chosen`` tokens, and of the most likely ones.

        ``total`` [sequences]: the log of the sum of a row's exponentials.
        """
        wanted = [
            (row, seq, seq.sampling.logprobs)
            for row, seq in enumerate(seqs)
            if not seq.finish_reason and seq.sampling.logprobs is not None
        ]
        if not wanted:
            return
        indices = torch.tensor([row for row, _, _ in wanted], device=logits.device)
        logprobs = logits[indices] - total[indices].unsqueeze(1)
        values, ids = (top.tolist() for top in logprobs.topk(max(count for _, _, count in wanted), dim=1))
        for (row, seq, count), top_ids, top_values in zip(wanted, ids, values, strict=True):
            seq.logprobs.append((chosen[row], list(zip(top_ids[:count], top_values[:count], strict=True))))

    def _end_tokens_of(self, seq: Sequence) -> set[int]:
        return self.end_tokens.union(seq.sampling.stop_token_ids)

    def _answer_text(self, seq: Sequence) -> str:
        if seq.stop_scanner and seq.stop_scanner.text is not None:
            return seq.stop_scanner.text
        is_cut = seq.new_tokens[-1] in self._end_tokens_of(seq)
        return self._text(seq.new_tokens[:-1] if is_cut else seq.new_tokens)

    def _logprobs(self, seq: Sequence) -> tuple[TokenLogprob, ...]:
        found = []
        for token, (logprob, top) in zip(seq.new_tokens, seq.logprobs, strict=True):
            alternatives = tuple(TokenLogprob(other, self._token_text(other), value) for other, value in top)
            found.append(TokenLogprob(token, self._token_text(token), logprob, alternatives))
        return tuple(found)

    def _text(self, tokens: list[int], special: bool = False) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=not special))
