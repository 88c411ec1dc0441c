"""The engine: a model with fused adapters and packed attention, and what every run of requests shares."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from pipeline.adapters import AdapterBank
from pipeline.engine.attention.hook import PackedAttention
from pipeline.engine.attention.packed import PackedStep, Segment
from pipeline.engine.attention.slots import LayerShape
from pipeline.engine.graphs import CudaRecorder, Recorder
from pipeline.engine.lora.operator import FusedLora
from pipeline.engine.request import Failure, Request, Reroute, Sampling
from pipeline.engine.sampling.constraints import Constraints
from pipeline.engine.settings import EngineSettings
from pipeline.records import Mixture

from .answers import Answer
from .limits import PromptLimits, context_length, end_tokens
from .session import Session


class Engine:
    """Generates with one base model and a bank of adapters; every request names its own mixture.

    `UserError` for a model whose attention is not supported.
    """

    def __init__(self, model: Any, tokenizer: Any, bank: AdapterBank, settings: EngineSettings) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.attention = PackedAttention(model)
        self.lora = FusedLora(model, bank, settings.lora)
        self.end_tokens = end_tokens(model.generation_config, tokenizer)
        self.context = context_length(model.config)
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.constraints = Constraints(tokenizer, self.vocabulary, self.end_tokens)
        self.lock = threading.Lock()  # of the model: one pass at a time
        self.before_pass: Callable[[], None] = lambda: None
        self.recorder: Recorder | None = None
        if settings.cuda_graphs and model.device.type == "cuda":
            self.recorder = CudaRecorder(model.device)
        self.kv_tokens = settings.kv_tokens or _kv_tokens(self.attention.shapes, model.device)
        self._mixtures: tuple[list[Mixture], list[int], list[int], bool] | None = None

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, reroute: Reroute | None = None
    ) -> Iterator[Answer]:
        """Answer requests, in the order in which they finish; few are read ahead (``look_ahead``).

        A request that cannot be run yields a `Failure`; an error of the model itself is raised. ``sampling``: of
        requests without settings of their own. ``reroute`` may give each sentence of an answer a mixture of its own;
        without it an answer keeps that of its request.
        """
        session = Session(self, sampling, reroute)
        source = iter(requests)
        more = True
        while more or session.is_busy:
            while more and session.has_room:
                request = next(source, None)
                if request is None:
                    more = False
                elif problem := session.add(request):
                    yield request, problem
            yield from session.step()

    def problem(self, request: Request, sampling: Sampling) -> Failure | None:
        """Why the prompt of a request cannot be run."""
        return self.limits.problem(request, sampling)

    @property
    def limits(self) -> PromptLimits:
        """What a prompt must fit."""
        return PromptLimits(self.vocabulary, self.context, self.kv_tokens)

    def forward(self, segments: Sequence[Segment], expected_tokens: int = 0) -> tuple[list[Segment], torch.Tensor]:
        """One pass over tokens of many rows: the segments in packed order, and logits [kept tokens x vocab].

        ``expected_tokens``: how many will run with the same single mixture, as far as is known; 0 where there are
        several. May be called from several threads; passes run one after another.
        """
        self.before_pass()
        packed = PackedStep(segments, self.attention.layers, self.model.device, self.attention.flash)
        with self.lock:
            self._set_spans(packed, expected_tokens)
            logits = self.attention.run(packed, packed.ids, packed.positions, packed.kept)
        packed.finish()
        return packed.segments, logits

    def set_mixtures(
        self, mixtures: list[Mixture], places: list[int], kept: list[int], expected_tokens: int, union: bool = False
    ) -> None:
        """Give every packed token its mixture, where they are not those of the last pass, as in most of decoding.

        Under ``lock``. ``places``, ``kept`` and ``union`` as `FusedLora.set_tokens` has them.
        """
        batch = (mixtures, places, kept, union)
        if self._mixtures != batch:
            self.lora.set_tokens(
                mixtures, torch.tensor(places), torch.tensor(kept, dtype=torch.long), expected_tokens, union
            )
            self._mixtures = batch

    def _set_spans(self, packed: PackedStep, expected_tokens: int) -> None:
        numbers: dict[Mixture, int] = {}
        places: list[int] = []
        for segment in packed.segments:
            ends = [*(start for start, _ in segment.spans[1:]), len(segment.tokens)]
            for (start, mixture), end in zip(segment.spans, ends, strict=True):
                places += [numbers.setdefault(mixture, len(numbers))] * (end - start)
        self.set_mixtures(list(numbers), places, packed.kept_places, expected_tokens)


def _kv_tokens(shapes: Sequence[LayerShape], device: torch.device) -> int:
    """Positions that fit: in four fifths of a GPU's free memory, or a quarter of the machine's."""
    if device.type == "cuda":
        memory = torch.cuda.mem_get_info(device)[0] * 4 // 5
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return max(1, int(memory // sum(shape.bytes for shape in shapes)))
