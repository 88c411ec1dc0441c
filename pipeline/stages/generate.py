"""Generate stage: the fused engine in an actor; a record that breaks it is found and set aside."""

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from ..adapters import AdapterBank
from ..engine import Engine, Failure, Request, Reroute
from ..models import load_model, load_tokenizer
from ..records import (
    COMPLETED,
    SENTENCE_MIXTURES,
    SENTENCES,
    Completion,
    DeadLetter,
    Mixture,
    joined,
    parse_spans,
    span_rows,
)
from ..routing import Router, SentenceRouter
from .settings import JobSettings
from .tables import with_columns, with_dead_letters


class GenerateRecords:
    """Actor of the generate stage: one engine, loaded once."""

    def __init__(self, settings: JobSettings, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        model = settings.model
        loaded = load_model(model.folder, model.dtype, device, model.trust_remote_code, model.quantization)
        bank = AdapterBank.load(settings.bank, settings.adapters)
        tokenizer = load_tokenizer(model.folder, model.trust_remote_code)
        self.engine = Engine(loaded, tokenizer, bank, settings.engine)
        self.sampling = settings.sampling
        self.reroute: Reroute | None = None
        if settings.sentences:
            router = Router.load(settings.router)
            self.reroute = SentenceRouter(router, settings.routing, settings.sentences, tokenizer)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.COMPLETED`; records without an answer become dead letters.

        Where sentences are routed, that of `records.SENTENCE_MIXTURES` too.
        """
        alive = [i for i, dead in enumerate(table["dead_stage"].to_pylist()) if dead is None]
        requests = self._requests(table.take(pa.array(alive, pa.int64())))
        schema = joined(COMPLETED, SENTENCE_MIXTURES) if self.reroute else COMPLETED
        columns: dict[str, list[Any]] = {f.name: [None] * table.num_rows for f in schema}
        dead: dict[int, DeadLetter] = {}
        for row, request, answer in zip(alive, requests, self._answers(requests), strict=True):
            if isinstance(answer, Failure):
                dead[row] = DeadLetter("generate", answer.error_type, answer.message)
                continue
            for name in COMPLETED.names:
                columns[name][row] = getattr(answer, name)
            if self.reroute:
                columns["sentence_mixtures"][row] = span_rows(request.spans + answer.sentences)
        return with_columns(with_dead_letters(table, dead), schema, columns)

    def _requests(self, table: pa.Table) -> list[Request]:
        names = ["id", "tokens", "mixture", *(SENTENCES.names if self.reroute else [])]
        rows = table.select(names).to_pylist()
        if not self.reroute:
            return [Request(r["id"], r["tokens"], Mixture.parse(r["mixture"])) for r in rows]
        return [
            Request(r["id"], r["tokens"], Mixture.parse(r["mixture"]), parse_spans(r["spans"]), r["context"])
            for r in rows
        ]

    def _leave_if_device_is_lost(self) -> None:
        """After a device-side assert every CUDA call of this process fails: end it, so that Ray starts it again."""
        if self.engine.model.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)

    def _answers(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """An answer for each request. Where the engine raises, halves are tried, down to the request that breaks it."""
        if not requests:
            return []
        try:
            places = {id(request): place for place, request in enumerate(requests)}
            answers: list[Completion | Failure] = [Failure("NoAnswer", "the engine gave no answer")] * len(requests)
            for request, answer in self.engine.generate(requests, self.sampling, self.reroute):
                answers[places[id(request)]] = answer
            return answers
        except Exception as error:
            self._leave_if_device_is_lost()
            if len(requests) == 1:
                message = str(error).splitlines()[0] if str(error) else ""
                return [Failure(type(error).__name__, message or "the engine failed on this record alone")]
            middle = len(requests) // 2
            return self._answers(requests[:middle]) + self._answers(requests[middle:])
