"""Requests of one kind of sampling on their way through the engine: plan, run, choose, again."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..records import Completion
from .decoding import Decoder
from .packed import Segment
from .request import Failure, Request, Reroute, Sampling
from .rows import Row
from .sampling import row_generator
from .scheduler import Limits, Scheduler
from .slots import SlotCache

if TYPE_CHECKING:
    from .engine import Engine


class Session:
    """Holds rows and their cache. Drop it to give its memory back; after an error it must not be used again."""

    def __init__(self, engine: "Engine", sampling: Sampling, reroute: Reroute | None = None) -> None:
        self.engine = engine
        self.sampling = sampling
        self.reroute = reroute
        self.decoder = Decoder(engine.tokenizer, engine.end_tokens, sampling)
        settings = engine.settings
        limits = Limits(settings.batch_size, settings.prefill_tokens, settings.most_waiting, settings.reuse_prefixes)
        self.scheduler = Scheduler(SlotCache(engine.attention.shapes, engine.model.device, engine.kv_tokens), limits)

    @property
    def has_room(self) -> bool:
        """Whether another request should be added before the next step."""
        return self.scheduler.has_room

    @property
    def is_busy(self) -> bool:
        """Whether a request has no answer yet."""
        return self.scheduler.is_busy

    def add(self, request: Request) -> Row | Failure:
        """Let a request wait; the failure of one that cannot be run."""
        problem = self.engine.problem(request, self.sampling)
        if problem:
            return problem
        generator = row_generator(self.engine.settings.seed, request.id)
        row = Row(request, generator, self.sampling.max_new_tokens)
        self.scheduler.add(row)
        return row

    @torch.inference_mode()
    def step(self) -> list[tuple[Row, Completion | Failure]]:
        """Run one pass, and return the rows that end with it."""
        if not self.is_busy:
            return []
        work = self.scheduler.plan()
        segments = {_segment(row, count): row for row, count in work}
        packed, logits = self.engine.forward([*segments])
        self.scheduler.ran(work)
        rows = [segments[segment] for segment in packed if segment.kept]
        if rows:
            self.decoder.advance(rows, logits.float())
        return self._ended(rows)

    def _ended(self, rows: Sequence[Row]) -> list[tuple[Row, Completion | Failure]]:
        ended = []
        for row in rows:
            if row.ended is not None:
                self.scheduler.leave(row)
                ended.append((row, self.decoder.completion(row)))
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
