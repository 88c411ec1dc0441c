"""Generate stage: the fused engine in an actor; a record that breaks it is found and set aside."""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import ray
import torch

from ..adapters import AdapterBank
from ..engine import Engine, EngineServer, Failure, Request, Reroute
from ..engine.choices import choose
from ..engine.faults import Watchdog, halve, is_out_of_memory
from ..models import PromptFormat, load_model, load_tokenizer
from ..records import (
    COMPLETED,
    SENTENCE_MIXTURES,
    SENTENCES,
    Completion,
    DeadLetter,
    Mixture,
    joined,
    logprob_rows,
    output_rows,
    parse_spans,
    span_rows,
)
from ..routing import Router, SentenceRouter
from .incidents import Incidents
from .local import on_this_node
from .logs import tell_here
from .metrics import EngineMetrics
from .sampling import RecordSampling
from .settings import JobSettings
from .tables import with_columns, with_dead_letters

_SHOWN_EVERY = 5.0  # seconds between two looks at the engine, for metrics


class GenerateRecords:
    """Actor of the generate stage: one engine, loaded once, that several batches may use at the same time."""

    def __init__(self, settings: JobSettings, device: str, threads: int, incidents: Incidents | None = None) -> None:
        self.incidents = incidents or Incidents()
        begun = time.monotonic()
        with self.incidents.starting("generate"):
            self._start(settings, device, threads)
        actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        if actor:
            tell_here("engine ready", run=settings.run, device=device, seconds=round(time.monotonic() - begun, 1))
            metrics = EngineMetrics(settings.run, actor)
            threading.Thread(target=self._show, args=(metrics,), daemon=True, name="metrics").start()

    def _start(self, settings: JobSettings, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        settings = on_this_node(settings)
        model = settings.model
        loaded = load_model(model.folder, model.dtype, device, model.trust_remote_code, model.quantization)
        bank = AdapterBank.load(settings.bank, settings.adapters)
        tokenizer = load_tokenizer(model.folder, model.trust_remote_code)
        self.engine = Engine(loaded, tokenizer, bank, settings.engine)
        self.settings = settings.sampling
        self.sampling = RecordSampling(settings.sampling)
        self.encode = PromptFormat(tokenizer, model.prompt_format).encode_answer
        self.asked = settings.asked
        self.reroute: Reroute | None = None
        if settings.sentences:
            router = Router.load(settings.router)
            self.reroute = SentenceRouter(router, settings.routing, settings.sentences, tokenizer)
        self.watchdog = Watchdog(self.engine, settings.hang_seconds, lambda: os._exit(1))
        self.server = EngineServer(
            self.engine, settings.sampling, self.reroute, self._leave_if_device_is_lost, self.watchdog.watching
        )

    def _show(self, metrics: EngineMetrics) -> None:
        while True:
            with suppress(RuntimeError):  # a look at what another thread changes
                metrics.show(self.server.load())
            time.sleep(_SHOWN_EVERY)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.COMPLETED`; records without an answer become dead letters.

        Those of `records.ASKED` too where the settings may ask for them, and where sentences are routed that of
        `records.SENTENCE_MIXTURES`.
        """
        with self.incidents.telling("generate"):
            return self._answered(table)

    def _answered(self, table: pa.Table) -> pa.Table:
        alive = [i for i, dead in enumerate(table["dead_stage"].to_pylist()) if dead is None]
        requests = self._requests(table.take(pa.array(alive, pa.int64())))
        schema = joined(COMPLETED, self.asked, *([SENTENCE_MIXTURES] if self.reroute else []))
        columns: dict[str, list[Any]] = {f.name: [None] * table.num_rows for f in schema}
        dead: dict[int, DeadLetter] = {}
        for row, request, found in zip(alive, requests, self._answers(requests), strict=True):
            if isinstance(found, Failure):
                dead[row] = DeadLetter("generate", found.error_type, found.message)
                continue
            for name, value in _values(request, found).items():
                if name in columns:
                    columns[name][row] = value
        return with_columns(with_dead_letters(table, dead), schema, columns)

    def _requests(self, table: pa.Table) -> list[Request]:
        names = ["id", "tokens", "mixture", "sampling", *(SENTENCES.names if self.reroute else [])]
        return [
            Request(
                row["id"],
                row["tokens"],
                Mixture.parse(row["mixture"]),
                parse_spans(row["spans"]) if self.reroute else (),
                row["context"] if self.reroute else 0,
                self.sampling(row["sampling"]),
            )
            for row in table.select(names).to_pylist()
        ]

    def _leave_if_device_is_lost(self, error: Exception) -> None:
        """After a device-side assert every CUDA call of this process fails: end it, so that Ray starts it again."""
        if self.engine.model.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(1)

    def _answers(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """An answer for each request: choices are scored here, all else goes through the server."""
        scored = [bool((request.sampling or self.settings).choices) for request in requests]
        chosen = iter(self._chosen([r for r, choices in zip(requests, scored, strict=True) if choices]))
        generated = iter(self.server.answer([r for r, choices in zip(requests, scored, strict=True) if not choices]))
        return [next(chosen if choices else generated) for choices in scored]

    def _chosen(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """Answers by choices. Where the engine raises, halves are tried, down to the request that breaks it."""
        if not requests:
            return []
        try:
            places = {id(request): place for place, request in enumerate(requests)}
            answers: list[Completion | Failure] = [Failure("NoAnswer", "the engine gave no answer")] * len(requests)
            with self.watchdog.watching():
                for request, found in choose(self.engine, requests, self.settings, self.encode):
                    answers[places[id(request)]] = found
            return answers
        except Exception as error:
            self._leave_if_device_is_lost(error.with_traceback(None))
            if is_out_of_memory(error) and halve(self.engine):
                return self._chosen(requests)
            if len(requests) == 1:
                message = str(error).splitlines()[0] if str(error) else ""
                return [Failure(type(error).__name__, message or "the engine failed on this record alone")]
            middle = len(requests) // 2
            return self._chosen(requests[:middle]) + self._chosen(requests[middle:])


def _values(request: Request, completion: Completion) -> dict[str, Any]:
    """Values of all columns that an answer may have."""
    return {
        **{name: getattr(completion, name) for name in COMPLETED.names},
        "outputs": output_rows(completion.answers),
        "logprobs": logprob_rows(completion.logprobs),
        "choice_log_likelihoods": completion.choice_log_likelihoods,
        "sentence_mixtures": span_rows(request.spans + completion.sentences),
    }
