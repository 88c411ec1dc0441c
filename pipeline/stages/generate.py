"""Generate stage: an engine in an actor; a record that breaks it is found and set aside."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pyarrow as pa
import ray

from pipeline.cluster.node_cache import on_this_node
from pipeline.engine import Failure, Request
from pipeline.records import (
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
from pipeline.settings import JobSettings
from pipeline.telemetry.incidents import Incidents
from pipeline.telemetry.logs import tell_here
from pipeline.telemetry.metrics import EngineMetrics

from .record_sampling import RecordSampling
from .start_engine import start_backend
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
        settings = on_this_node(settings)
        self.sampling = RecordSampling(settings.sampling)
        self.asked = settings.asked
        self.sentences = settings.sentences is not None
        self.backend = start_backend(settings, device, threads)

    def _show(self, metrics: EngineMetrics) -> None:
        while True:
            with suppress(RuntimeError):  # a look at what another thread changes
                metrics.show(self.backend.load())
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
        schema = joined(COMPLETED, self.asked, *([SENTENCE_MIXTURES] if self.sentences else []))
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
        names = ["id", "tokens", "mixture", "sampling", *(SENTENCES.names if self.sentences else [])]
        return [
            Request(
                row["id"],
                row["tokens"],
                Mixture.parse(row["mixture"]),
                parse_spans(row["spans"]) if self.sentences else (),
                row["context"] if self.sentences else 0,
                self.sampling(row["sampling"]),
            )
            for row in table.select(names).to_pylist()
        ]

    def _answers(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        return self.backend.answer(requests)


def _values(request: Request, completion: Completion) -> dict[str, Any]:
    """Values of all columns that an answer may have."""
    return {
        **{name: getattr(completion, name) for name in COMPLETED.names},
        "outputs": output_rows(completion.answers),
        "logprobs": logprob_rows(completion.logprobs),
        "choice_log_likelihoods": completion.choice_log_likelihoods,
        "sentence_mixtures": span_rows(request.spans + completion.sentences),
    }
