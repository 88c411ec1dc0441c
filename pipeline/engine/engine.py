"""The decode loop: rows join as others leave, each with its own mixture, and completions come as they finish."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..adapters import AdapterBank
from ..records import Completion
from .batch import Batch, Row
from .lora import FusedLora, LoraSettings
from .request import Failure, Request, Reroute, Sampling
from .sampling import choose_tokens, row_generator

Answer = tuple[Request, Completion | Failure]


@dataclass(frozen=True)
class EngineSettings:
    """``batch_size``: rows at a time. ``prefill_tokens``: prompt tokens, padding included, of one prefill."""

    batch_size: int = 32
    prefill_tokens: int = 8192
    seed: int = 0
    lora: LoraSettings = field(default_factory=LoraSettings)


class Engine:
    """Generates with one base model and a bank of adapters; every request names its own mixture."""

    def __init__(self, model: Any, tokenizer: Any, bank: AdapterBank, settings: EngineSettings) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.lora = FusedLora(model, bank, settings.lora)
        self.end_tokens = _end_tokens(model, tokenizer)
        self.context = int(getattr(model.config, "max_position_embeddings", 0) or 2**31)

    @torch.inference_mode()
    def generate(
        self, requests: Iterable[Request], sampling: Sampling, reroute: Reroute | None = None
    ) -> Iterator[Answer]:
        """Answer requests, in the order in which they finish.

        Longest prompts start first, so that prefills are of like lengths. A request that cannot be run yields a
        `Failure`; an error of the model itself is raised. ``reroute`` may give each sentence of an answer a mixture
        of its own; without it an answer keeps that of its request.
        """
        runnable = []
        for request in requests:
            problem = self._problem(request, sampling)
            if problem:
                yield request, problem
            else:
                runnable.append(request)
        waiting = deque(sorted(runnable, key=lambda r: (-len(r.tokens), r.id)))
        batch: Batch | None = None
        while waiting or batch:
            batch = self._admit(batch, waiting)
            yield from self._advance(batch, sampling, reroute)
            batch = self._without_finished(batch)

    def _problem(self, request: Request, sampling: Sampling) -> Failure | None:
        vocabulary = self.model.config.get_text_config().vocab_size
        if not request.tokens:
            return Failure("EmptyPrompt", "the prompt has no tokens")
        if max(request.tokens) >= vocabulary or min(request.tokens) < 0:
            return Failure("BadToken", f"a token id outside the model's vocabulary of {vocabulary}")
        if len(request.tokens) + sampling.max_new_tokens > self.context:
            return Failure(
                "PromptTooLong",
                f"{len(request.tokens)} prompt tokens and {sampling.max_new_tokens} new ones exceed the"
                f" context of {self.context}",
            )
        return None

    def _admit(self, batch: Batch | None, waiting: deque[Request]) -> Batch:
        """Prefill as many waiting requests as there is room for, and join them to the batch."""
        room = self.settings.batch_size - (len(batch.rows) if batch else 0)
        # A prefill of few rows costs nearly as much as one of many: wait until a quarter of the batch is free.
        if batch and room < max(1, min(len(waiting), self.settings.batch_size // 4)):
            return batch
        new = self._take(waiting, room)
        if not new:
            assert batch is not None
            return batch
        rows = [Row(request, row_generator(self.settings.seed, request.id)) for request in new]
        self._set_prompt_mixtures(new)
        joined = Batch(self.model, rows)
        if batch:
            batch.join(joined)
        batch = batch or joined
        self.lora.set_mixtures(batch.mixtures)
        return batch

    def _set_prompt_mixtures(self, requests: Sequence[Request]) -> None:
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

    def _advance(self, batch: Batch, sampling: Sampling, reroute: Reroute | None) -> Iterator[Answer]:
        """Choose the next token of each row; yield rows that end with it; run the next step on the others."""
        finite = batch.logits.isfinite().all(1).tolist()
        logits = self._allowed(batch, sampling).nan_to_num()
        tokens = choose_tokens(logits, sampling, [row.generator for row in batch.rows])
        for row, token, good in zip(batch.rows, tokens.tolist(), finite, strict=True):
            if row.ended:
                continue
            if not good:
                row.ended = "failed"
                yield (
                    row.request,
                    Failure("NonFiniteLogits", "the model gave NaN or infinite logits for this record"),
                )
                continue
            row.new_tokens.append(token)
            row.ended = self._ended(row, sampling)
            if row.ended:
                yield row.request, self._completion(row, sampling)
        if not all(row.ended for row in batch.rows):
            if reroute:
                self._reroute(batch, reroute)
            batch.step(tokens, self.context)

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

    def _allowed(self, batch: Batch, sampling: Sampling) -> torch.Tensor:
        """Logits with the end tokens ruled out for rows that are still below ``min_new_tokens``."""
        short = [i for i, row in enumerate(batch.rows) if len(row.new_tokens) < sampling.min_new_tokens]
        if not short:
            return batch.logits
        logits = batch.logits.clone()
        logits[torch.tensor(short).unsqueeze(1), torch.tensor(sorted(self.end_tokens))] = torch.finfo(logits.dtype).min
        return logits

    def _ended(self, row: Row, sampling: Sampling) -> str | None:
        if row.new_tokens[-1] in self.end_tokens:
            return "stop"
        if sampling.stop and self._cut_at_stop(self._text(row.new_tokens), sampling)[1]:
            return "stop"
        return "length" if len(row.new_tokens) >= sampling.max_new_tokens else None

    def _completion(self, row: Row, sampling: Sampling) -> Completion:
        text, _ = self._cut_at_stop(self._text(row.new_tokens), sampling)
        prompt = len(row.request.tokens)
        sentences = tuple((prompt + place, mixture) for place, mixture in row.sentences[1:])
        return Completion(text, str(row.ended), prompt, len(row.new_tokens), sentences)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))

    def _cut_at_stop(self, text: str, sampling: Sampling) -> tuple[str, bool]:
        places = [place for stop in sampling.stop if (place := text.find(stop)) >= 0]
        return (text[: min(places)], True) if places else (text, False)

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
