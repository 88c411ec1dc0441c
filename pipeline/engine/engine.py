"""The decode loop: rows join as others leave, each with its own mixture, and completions come as they finish."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..adapters import AdapterBank
from .answers import Answer, Answers
from .batch import Batch
from .constraints import Constraints
from .decoding import Decoder
from .lora import FusedLora
from .request import Failure, Request, Reroute, Sampling
from .row import Row


@dataclass(frozen=True)
class EngineSettings:
    """``batch_size``: rows at a time. ``prefill_tokens``: prompt tokens, padding included, of one prefill."""

    batch_size: int = 32
    prefill_tokens: int = 8192
    seed: int = 0


class Engine:
    """Generates with one base model and a bank of adapters; every request names its own mixture."""

    def __init__(self, model: Any, tokenizer: Any, bank: AdapterBank, settings: EngineSettings) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.lora = FusedLora(model, bank)
        self.end_tokens = _end_tokens(model, tokenizer)
        self.context = int(getattr(model.config, "max_position_embeddings", 0) or 2**31)
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.constraints = Constraints(tokenizer, self.vocabulary, self.end_tokens)

    @torch.inference_mode()
    def generate(
        self, requests: Iterable[Request], sampling: Sampling, reroute: Reroute | None = None
    ) -> Iterator[Answer]:
        """Answer requests, in the order in which they finish.

        Longest prompts start first, so that prefills are of like lengths. A request that cannot be run yields a
        `Failure`; an error of the model itself is raised. ``sampling``: of requests without settings of their own.
        ``reroute`` may give each sentence of an answer a mixture of its own; without it an answer keeps that of its
        request.
        """
        decoder = Decoder(
            self.tokenizer, self.constraints, self.vocabulary, self.end_tokens, self.settings.seed, sampling
        )
        answers = Answers()
        runnable = []
        for request in requests:
            problem = self._problem(request, decoder)
            if problem:
                yield request, problem
            else:
                runnable += answers.split(request, decoder.sampling_of(request).n)
        waiting = deque(sorted(runnable, key=lambda r: (-len(r.tokens), r.id)))
        batch: Batch | None = None
        while waiting or batch:
            batch = self._admit(batch, waiting, decoder)
            for row in self._advance(batch, decoder, reroute):
                yield from answers.join(row.request, decoder.completion(row))
            batch = self._without_finished(batch)

    def _problem(self, request: Request, decoder: Decoder) -> Failure | None:
        sampling = decoder.sampling_of(request)
        if not request.tokens:
            return Failure("EmptyPrompt", "the prompt has no tokens")
        if max(request.tokens) >= self.vocabulary or min(request.tokens) < 0:
            return Failure("BadToken", f"a token id outside the model's vocabulary of {self.vocabulary}")
        if len(request.tokens) + sampling.max_new_tokens > self.context:
            return Failure(
                "PromptTooLong",
                f"{len(request.tokens)} prompt tokens and {sampling.max_new_tokens} new ones exceed the"
                f" context of {self.context}",
            )
        return decoder.problem(request)

    def _admit(self, batch: Batch | None, waiting: deque[Request], decoder: Decoder) -> Batch:
        """Prefill as many waiting requests as there is room for, and join them to the batch."""
        room = self.settings.batch_size - (len(batch.rows) if batch else 0)
        # A prefill of few rows costs nearly as much as one of many: wait until a quarter of the batch is free.
        if batch and room < max(1, min(len(waiting), self.settings.batch_size // 4)):
            return batch
        new = self._take(waiting, room)
        if not new:
            assert batch is not None
            return batch
        rows = [decoder.begin(Row(request)) for request in new]
        self.set_prompt_mixtures(new)
        joined = Batch(self.model, rows)
        if batch:
            batch.join(joined)
        batch = batch or joined
        self.lora.set_mixtures(batch.mixtures)
        return batch

    def set_prompt_mixtures(self, requests: Sequence[Request]) -> None:
        """The mixtures of a prefill of these prompts, padded on the left."""
        if not any(_differs(request) for request in requests):
            self.lora.set_mixtures([request.mixture for request in requests])
            return
        longest = max(len(request.tokens) for request in requests)
        spans = [(longest - len(r.tokens), r.spans or ((0, r.mixture),)) for r in requests]
        self.lora.set_spans(spans, longest)

    def _take(self, waiting: deque[Request], room: int) -> list[Request]:
        taken: list[Request] = []
        while waiting and len(taken) < room:
            longest = max(len(waiting[0].tokens), len(taken[0].tokens) if taken else 0)
            if taken and longest * (len(taken) + 1) > self.settings.prefill_tokens:
                break
            taken.append(waiting.popleft())
        return taken

    def _advance(self, batch: Batch, decoder: Decoder, reroute: Reroute | None) -> list[Row]:
        """Choose the next token of each row, and run the next step on those that go on; returns those that end."""
        running = [row for row in batch.rows if not row.ended]
        tokens = decoder.advance(batch.rows, batch.logits)
        ended = [row for row in running if row.ended]
        if len(ended) < len(running):
            if reroute:
                self._reroute(batch, reroute)
            batch.step(tokens, self.context)
        return ended

    def _reroute(self, batch: Batch, reroute: Reroute) -> None:
        """Give rows whose last token starts a sentence the mixture of that sentence."""
        changed = False
        for row in batch.rows:
            mixture = None if row.ended else reroute(row.request, row.new_tokens, row.sentences)
            if mixture is not None:
                changed |= mixture != row.mixture
                row.sentences.append((len(row.new_tokens) - 1, mixture))
        if changed:
            self.lora.set_mixtures(batch.mixtures)

    def _without_finished(self, batch: Batch) -> Batch | None:
        """Take finished rows out, once they are an eighth of the batch: taking out copies the cache."""
        finished = sum(row.ended is not None for row in batch.rows)
        if finished == len(batch.rows):
            return None
        if finished and finished * 8 >= len(batch.rows):
            batch.keep_unfinished()
            self.lora.set_mixtures(batch.mixtures)
        return batch


def _differs(request: Request) -> bool:
    """Whether some token of the prompt has another mixture than its answer."""
    return any(mixture != request.mixture for _, mixture in request.spans)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends = set(configured if isinstance(configured, list) else [configured])
    return {int(token) for token in ends | {tokenizer.eos_token_id} if token is not None}
