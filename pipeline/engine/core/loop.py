"""The generation loop: schedule, run, choose tokens, finish."""

from dataclasses import dataclass, field

import torch

from pipeline.engine.attention.segment import Segment
from pipeline.engine.graphs.decode import DecodeGraphs
from pipeline.engine.model_runner import ModelRunner
from pipeline.engine.request import Failure, Outcome, Request, Reroute
from pipeline.engine.sequence import Sequence

from .decoder import Decoder
from .limits import PromptLimits
from .parallel_sampling import ParallelSampling
from .scheduler import Scheduler


@dataclass(eq=False)
class GenerationLoop:
    """Answers requests that are added between steps. It owns the KV cache, and cannot be used after an error."""

    runner: ModelRunner | DecodeGraphs
    limits: PromptLimits
    decoder: Decoder
    scheduler: Scheduler
    reroute: Reroute | None
    _parallel_sampling: ParallelSampling = field(default_factory=ParallelSampling)

    def add(self, request: Request) -> Failure | None:
        """Queue a request; return the failure of one that cannot be run."""
        sampling = self.decoder.sampling_of(request)
        problem = self.limits.problem(request, sampling.max_new_tokens) or self.decoder.problem(request)
        if problem is None:
            for part in self._parallel_sampling.split(request, sampling.n):
                self.scheduler.add(self.decoder.start(part))
        return problem

    @torch.inference_mode()
    def step(self) -> list[tuple[Request, Outcome]]:
        """Run one pass, and return the requests that it answers."""
        if not self.scheduler.is_busy:
            return []
        scheduled = self.scheduler.schedule()
        segments = {_segment(seq, num_tokens): seq for seq, num_tokens in scheduled}
        packed, logits = self.runner.forward([*segments], self.scheduler.expected_tokens())
        self.scheduler.update(scheduled)
        seqs = [segments[segment] for segment in packed if segment.kept]
        if seqs:
            self.decoder.choose(seqs, logits.float())
        return self._finish(seqs)

    def _finish(self, seqs: list[Sequence]) -> list[tuple[Request, Outcome]]:
        """Take finished sequences out of the batch; let the others start a sentence with a mixture of its own."""
        answered: list[tuple[Request, Outcome]] = []
        for seq in seqs:
            if seq.finish_reason is not None:
                self.scheduler.finish(seq)
                answered += self._parallel_sampling.join(seq.request, self.decoder.outcome(seq))
            elif self.reroute:
                mixture = self.reroute(seq.request, seq.new_tokens, seq.sentences)
                if mixture is not None:
                    seq.sentences.append((len(seq.new_tokens) - 1, mixture))
        return answered


def _segment(seq: Sequence, num_tokens: int) -> Segment:
    """Make the segment of a sequence's next tokens; it keeps the logits of the last one if no tokens remain then."""
    start, stop = seq.num_computed, seq.num_computed + num_tokens
    assert seq.slot is not None
    kept = (num_tokens - 1,) if stop == seq.num_tokens else ()
    return Segment(seq.slot, seq.tokens(start, stop), start, seq.spans(start, stop), kept)
