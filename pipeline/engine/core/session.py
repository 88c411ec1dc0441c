"""Requests on their way through the engine: plan, run, choose, again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from pipeline.engine.attention.packed import Segment
from pipeline.engine.attention.slots import SlotCache
from pipeline.engine.graphs import DecodeGraphs
from pipeline.engine.request import Failure, Request, Reroute, Sampling
from pipeline.engine.sampling.decoder import Decoder
from pipeline.engine.sequence import Row

from .answers import Answer, Answers
from .scheduler import Limits, Scheduler

if TYPE_CHECKING:
    from .engine import Engine


_ADMITTED = 8  # of the rows, this part is admitted at a time where decode steps are recorded


class Session:
    """Holds rows and their cache. Drop it to give its memory back; after an error it must not be used again.

    ``sampling``: of requests without settings of their own.
    """

    def __init__(self, engine: "Engine", sampling: Sampling, reroute: Reroute | None = None) -> None:
        self.engine = engine
        settings = engine.settings
        self.reroute = reroute
        self.decoder = Decoder(
            engine.tokenizer, engine.constraints, engine.vocabulary, engine.end_tokens, settings.seed, sampling
        )
        self.answers = Answers()
        self.graphs = DecodeGraphs(engine, engine.recorder) if engine.recorder else None
        rows = settings.batch_size
        admit_at = max(1, rows // _ADMITTED) if self.graphs and self.graphs.records else 1
        limits = Limits(rows, settings.prefill_tokens, settings.most_waiting, settings.reuse_prefixes, admit_at)
        self.scheduler = Scheduler(SlotCache(engine.attention.shapes, engine.model.device, engine.kv_tokens), limits)

    @property
    def has_room(self) -> bool:
        """Whether another request should be added before the next step."""
        return self.scheduler.has_room

    @property
    def is_busy(self) -> bool:
        """Whether a request has no answer yet."""
        return self.scheduler.is_busy

    def add(self, request: Request) -> Failure | None:
        """Let a request wait; the failure of one that cannot be run."""
        sampling = self.decoder.sampling_of(request)
        problem = self.engine.problem(request, sampling) or self.decoder.problem(request)
        if problem is None:
            for part in self.answers.split(request, sampling.n):
                self.scheduler.add(self.decoder.begin(Row(part)))
        return problem

    @torch.inference_mode()
    def step(self) -> list[Answer]:
        """Run one pass, and return the requests that are answered with it."""
        if not self.is_busy:
            return []
        work = self.scheduler.plan()
        segments = {_segment(row, count): row for row, count in work}
        forward = self.graphs.forward if self.graphs else self.engine.forward
        packed, logits = forward([*segments], self.scheduler.tokens_of_one_mixture())
        self.scheduler.ran(work)
        rows = [segments[segment] for segment in packed if segment.kept]
        if rows:
            self.decoder.advance(rows, logits.float())
        return self._ended(rows)

    def _ended(self, rows: Sequence[Row]) -> list[Answer]:
        ended: list[Answer] = []
        for row in rows:
            if row.ended is not None:
                self.scheduler.leave(row)
                ended += self.answers.join(row.request, self.decoder.completion(row))
            elif self.reroute:
                mixture = self.reroute(row.request, row.new_tokens, row.sentences)
                if mixture is not None:
                    row.sentences.append((len(row.new_tokens) - 1, mixture))
        return ended


def _segment(row: Row, count: int) -> Segment:
    """The next tokens of a row. The logits of the last one are wanted where all of its tokens have run then."""
    start, stop = row.done, row.done + count
    assert row.slot is not None
    kept = (count - 1,) if stop == row.total else ()
    return Segment(row.slot, row.tokens(start, stop), start, row.spans(start, stop), kept)
