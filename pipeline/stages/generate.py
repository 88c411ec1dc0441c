"""Generate stage: answer records with an engine in an actor; a record that cannot be answered becomes a dead letter."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import ray
import torch

from pipeline.adapters import AdapterBank
from pipeline.cluster.node_cache import cache_for_engine
from pipeline.engine import Failure, Outcome, Request
from pipeline.engine.backend import Backend, EngineContext
from pipeline.engine.registry import spec_of
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.records import (
    COMPLETED,
    PROMPT_PARTS,
    SENTENCES,
    Completion,
    DeadLetter,
    Mixture,
    concat_schemas,
    logprob_rows,
    output_rows,
    parse_spans,
    span_rows,
)
from pipeline.routing.loading import load_router
from pipeline.routing.rerouting import SentenceRouter
from pipeline.settings import JobSettings
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.logs import log_worker_event
from pipeline.telemetry.metrics import EngineMetrics

from .part_requests import PartRequests
from .record_sampling import RecordSampling
from .tables import with_columns, with_dead_letters

_METRICS_SECONDS = 5.0  # between two looks at the engine


def start_engine(settings: JobSettings, device: str, threads: int) -> Backend:
    """Load the bank and start the configured engine.

    ``settings``: of `cache_for_engine`. ``threads``: of this process. Raises `UserError` for a bank with NaN values.
    """
    torch.set_num_threads(threads)
    model = settings.model
    tokenizer = load_tokenizer(model.path, model.trust_remote_code)
    bank = AdapterBank.load(settings.bank, settings.adapters)
    bank.check_values()  # of a bank in another store, the driver has seen the headers only
    reroute = None
    if settings.sentences:
        reroute = SentenceRouter(load_router(settings.router), settings.routing, settings.sentences, tokenizer)
    context = EngineContext(
        model_path=model.path,
        dtype=model.dtype,
        quantization=model.quantization,
        trust_remote_code=model.trust_remote_code,
        tokenizer=tokenizer,
        bank=bank,
        sampling=settings.sampling,
        encode=PromptFormat(tokenizer, model.prompts).encode_answer,
        max_adapters=settings.routing.largest_mixture(len(bank.names)),
        reroute=reroute,
        device=device,
        threads=threads,
        hang_seconds=settings.hang_seconds,
    )
    return spec_of(settings.engine).start(settings.engine, context)


class GenerateRecords:
    """Actor of the generate stage: one engine, loaded once, that several batches may use at the same time."""

    def __init__(self, settings: JobSettings, device: str, threads: int, incidents: Incidents | None = None) -> None:
        self.incidents = incidents or Incidents()
        start = time.monotonic()
        with self.incidents.recording_start("generate"):
            self._start(settings, device, threads)
        actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
        if actor:
            seconds = round(time.monotonic() - start, 1)
            log_worker_event("engine ready", run=settings.run, device=device, seconds=seconds)
            metrics = EngineMetrics(settings.run, actor)
            threading.Thread(target=self._report, args=(metrics,), daemon=True, name="metrics").start()

    def _start(self, settings: JobSettings, device: str, threads: int) -> None:
        settings = cache_for_engine(settings)
        self.sampling = RecordSampling(settings.sampling)
        self.extra_columns = concat_schemas(settings.requested_columns, settings.divided_columns)
        self.sentences = settings.sentences is not None
        self.parts = settings.parts is not None
        self.backend = start_engine(settings, device, threads)

    def _report(self, metrics: EngineMetrics) -> None:
        while True:
            with suppress(RuntimeError):  # another thread changes the load meanwhile
                metrics.report(self.backend.load())
            time.sleep(_METRICS_SECONDS)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Append the columns of `records.COMPLETED`; records without an answer become dead letters.

        Appends columns of `records.REQUESTED` too if the settings may request them, `records.SENTENCE_MIXTURES` if
        sentences are routed one by one, and `records.PARTS` if prompts are cut into parts.
        """
        with self.incidents.recording("generate", records=table.num_rows):
            return self._answer_table(table)

    def _answer_table(self, table: pa.Table) -> pa.Table:
        alive = [i for i, dead in enumerate(table["dead"].to_pylist()) if dead is None]
        records = self._requests(table.take(pa.array(alive, pa.int64())))
        schema = concat_schemas(COMPLETED, self.extra_columns)
        columns: dict[str, list[Any]] = {f.name: [None] * table.num_rows for f in schema}
        dead: dict[int, DeadLetter] = {}
        outcomes = iter(self._answer([request for record in records for request in record.requests]))
        for row, record in zip(alive, records, strict=True):
            answers = [next(outcomes) for _ in record.requests]
            answer = record.join(answers)
            if isinstance(answer, Failure):
                dead[row] = DeadLetter("generate", answer.error_type, answer.message)
                continue
            for name, value in _values(record, answers, answer).items():
                if name in columns:
                    columns[name][row] = value
        return with_columns(with_dead_letters(table, dead), schema, columns)

    def _requests(self, table: pa.Table) -> list[PartRequests]:
        extra = SENTENCES.names if self.sentences else PROMPT_PARTS.names if self.parts else []
        rows = table.select(["id", "tokens", "mixture", "sampling", *extra]).to_pylist()
        return [PartRequests.of(self._request(row), row["prompt_parts"] if self.parts else None) for row in rows]

    def _request(self, row: dict[str, Any]) -> Request:
        return Request(
            row["id"],
            row["tokens"],
            Mixture.parse(row["mixture"]),
            parse_spans(row["spans"]) if self.sentences else (),
            row["context"] if self.sentences else 0,
            self.sampling(row["sampling"]),
        )

    def _answer(self, requests: Sequence[Request]) -> list[Outcome]:
        return self.backend.answer(requests)


def _values(record: PartRequests, answers: Sequence[Outcome], joined: Completion) -> dict[str, Any]:
    """Return the values of all columns that an answer may have."""
    return {
        **{name: getattr(joined, name) for name in COMPLETED.names},
        "outputs": output_rows(joined.answers),
        "logprobs": logprob_rows(joined.logprobs),
        "choice_log_likelihoods": joined.choice_log_likelihoods,
        "choice_margin": joined.choice_margin,
        "sentence_mixtures": span_rows(record.requests[0].spans + joined.sentences),
        "parts": record.rows(answers),
    }
