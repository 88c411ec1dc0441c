"""The generation loop: schedule, run, choose tokens, finish."""

from dataclasses import dataclass, field

import torch

from pipeline.engine.attention.segment import Segment
from pipeline.engine.graphs import DecodeGraphs
from pipeline.engine.model_runner import ModelRunner
from pipeline.engine.request import Failure, Outcome, Request, Reroute
from pipeline.engine.sequence import Sequence

from .decoder import Decoder
from .limits import PromptLimits
from .parallel_sampling import ParallelSampling
from .scheduler import Scheduled, Scheduler


@dataclass(eq=False)
class GenerationLoop:
    """Answers requests that are added between steps. It owns the KV cache, and cannot be used after an error."""

    runner: ModelRunner | DecodeGraphs
    limits: PromptLimits
    decoder: Decoder
    scheduler: Scheduler
    reroute: Reroute | None
    _parallel_sampling: ParallelSampling = field(default_factory=ParallelSampling)

    @property
    def wants_requests(self) -> bool:
        """Whether another request should be added before the next step."""
        return self.scheduler.wants_sequences

    @property
    def is_busy(self) -> bool:
        """Whether a request is unanswered."""
        return self.scheduler.is_busy

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
        if not self.is_busy:
            return []
        scheduled = self.scheduler.schedule()
        seqs, logits = self._run(scheduled)
        self.scheduler.update(scheduled)
        if seqs:
            self.decoder.choose(seqs, logits.float())
        return self._finish(seqs)

    def _run(self, scheduled: list[Scheduled]) -> tuple[list[Sequence], torch.Tensor]:
        """Run a pass; return the sequences whose next token is to be chosen, and their logits."""
        segments = {_segment(seq, num_tokens): seq for seq, num_tokens in scheduled}
        packed, logits = self.runner.forward([*segments], self.scheduler.expected_tokens())
        return [segments[segment] for segment in packed if segment.kept], logits

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
