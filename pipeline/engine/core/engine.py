"""The native engine: a model with fused adapters, and the state that all runs of requests share."""

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch

from pipeline.adapters import AdapterBank
from pipeline.engine.attention.slots import SlotCache
from pipeline.engine.graphs.decode import DecodeGraphs
from pipeline.engine.graphs.record import CudaRecorder, Recorder
from pipeline.engine.model_runner import ModelRunner
from pipeline.engine.request import Outcome, Request, Reroute, Sampling
from pipeline.engine.sampling.constraints import Constraints
from pipeline.engine.settings import EngineSettings

from .decoder import Decoder
from .limits import PromptLimits, context_length, end_tokens
from .loop import GenerationLoop
from .prefixes import PrefixStore
from .scheduler import Scheduler

_ADMIT_FRACTION = 8  # if decode steps are recorded, an eighth of the batch must be free before prompts are admitted
_MIN_PREFILL_TOKENS = 64  # per pass
_log = logging.getLogger(__name__)


class Engine:
    """Generates with one base model and a bank of adapters; every request has its own mixture.

    Raises `UserError` if the model's attention is not supported, or the bank does not fit the model.
    """

    def __init__(self, model: Any, tokenizer: Any, bank: AdapterBank, settings: EngineSettings) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.runner = ModelRunner(model, bank, settings.lora)
        self.lora = self.runner.lora
        self.end_tokens = end_tokens(model.generation_config, tokenizer)
        self.context = context_length(model.config)
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.constraints = Constraints(tokenizer, self.vocabulary, self.end_tokens)
        self.recorder: Recorder | None = None
        if settings.cuda_graphs and model.device.type == "cuda":
            self.recorder = CudaRecorder(model.device)
        self.kv_tokens = settings.kv_tokens or self._available_kv_tokens()

    def generate(
        self, requests: Iterable[Request], sampling: Sampling, reroute: Reroute | None = None
    ) -> Iterator[tuple[Request, Outcome]]:
        """Answer requests, in the order in which they finish. Requests are read as needed (``look_ahead``).

        A request that cannot be run yields a `Failure`; an error of the model is raised. ``sampling``: settings of
        requests without their own. ``reroute`` may choose a mixture for each sentence of an answer; without it all
        tokens of an answer have the mixture of the request.
        """
        loop = self.new_loop(sampling, reroute)
        source = iter(requests)
        has_more = True
        while has_more or loop.scheduler.is_busy:
            while has_more and loop.scheduler.wants_sequences:
                request = next(source, None)
                if request is None:
                    has_more = False
                elif problem := loop.add(request):
                    yield request, problem
            yield from loop.step()

    def new_loop(self, sampling: Sampling, reroute: Reroute | None = None) -> GenerationLoop:
        """Make a generation loop with a cache of its own, and the current settings; arguments as in `generate`."""
        settings = self.settings
        runner = DecodeGraphs(self.runner, self.recorder) if self.recorder else self.runner
        is_recorded = isinstance(runner, DecodeGraphs) and runner.can_record
        min_free = max(1, settings.batch_size // _ADMIT_FRACTION) if is_recorded else 1
        prefixes = PrefixStore(settings.reuse_prefixes)
        scheduler = Scheduler(self.new_cache(prefixes), prefixes, settings, min_free)
        decoder = Decoder(self.tokenizer, self.constraints, self.vocabulary, self.end_tokens, settings.seed, sampling)
        return GenerationLoop(runner, self.limits, decoder, scheduler, reroute)

    def new_cache(self, prefixes: PrefixStore | None = None) -> SlotCache:
        """Make an empty cache of ``kv_tokens`` positions, shared with ``prefixes``. Memory is allocated as needed."""
        return SlotCache(self.runner.attention.shapes, self.model.device, self.kv_tokens, prefixes)

    @property
    def limits(self) -> PromptLimits:
        """Limits of prompts."""
        return PromptLimits(self.vocabulary, self.context, self.kv_tokens)

    def halve_batch(self) -> bool:
        """Halve batch size and prompt tokens per pass after an out-of-memory error; False if both are minimal.

        Answers stay the same, as they do not depend on the batch. The sizes stay halved: the cause (a neighbour on the
        GPU, a long prompt) will come again. Only new loops use them.
        """
        batch_size, prefill_tokens = self.settings.batch_size, self.settings.prefill_tokens
        sizes = max(1, batch_size // 2), max(_MIN_PREFILL_TOKENS, prefill_tokens // 2)
        if sizes == (batch_size, prefill_tokens) or sizes[1] > prefill_tokens:
            return False
        self.settings = replace(self.settings, batch_size=sizes[0], prefill_tokens=sizes[1])
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        _log.warning("engine: out of memory; continuing with batch_size=%d and prefill_tokens=%d", *sizes)
        return True

    def _available_kv_tokens(self) -> int:
        """Positions that fit four fifths of a GPU's free memory, or a quarter of the machine's."""
        device = self.model.device
        if device.type == "cuda":
            memory = torch.cuda.mem_get_info(device)[0] * 4 // 5
        else:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
        return max(1, int(memory // sum(shape.bytes for shape in self.runner.attention.shapes)))
