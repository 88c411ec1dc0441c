"""vLLM as a `Backend`: threads hand in requests, mixtures are written as adapters, vLLM answers."""

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import fields, replace
from math import isfinite
from typing import Any

from pipeline.engine.backend import Backend, EngineContext, EngineLoad
from pipeline.engine.core.decoder import Decoder
from pipeline.engine.core.limits import PromptLimits, context_length, end_tokens
from pipeline.engine.core.parallel_sampling import join_outcomes
from pipeline.engine.native import SPEC as NATIVE
from pipeline.engine.overrides import sampling_problem
from pipeline.engine.request import Failure, Outcome, Request, Sampling
from pipeline.engine.sampling.constraints import Constraints
from pipeline.engine.scoring.choices import choice_outcome
from pipeline.engine.scoring.score import Choices
from pipeline.engine.settings import BackendSettings, EngineSettings
from pipeline.models import load_config, load_generation_config, pick_dtype
from pipeline.records import Mixture

from . import capabilities
from .check import check_bank, check_copies, joined_rank, lora_rank
from .engine import VllmModel, engine_arguments, prepare_environment, start
from .files import MixtureFile, MixtureFiles
from .guard import Guard
from .params import choice_score, completion, sampling_params, scoring_params
from .settings import VllmSettings
from .watch import PassWatch


def start_vllm(settings: VllmSettings, context: EngineContext) -> Backend:
    """Start vLLM, or the native engine if mixtures of the bank have too high a rank (``settings.over_rank``)."""
    check_bank(settings, context.bank, context.max_adapters)
    check_copies(context.bank, context.model_path, context.trust_remote_code)
    if lora_rank(joined_rank(context.bank, context.max_adapters)) is None:
        shared = {field.name: getattr(settings, field.name) for field in fields(BackendSettings)}
        return NATIVE.start(EngineSettings(**shared), context)
    return VllmBackend(settings, context)


class VllmBackend:
    """Answers requests with vLLM. Requests of all threads that call `answer` run together.

    With ``max_adapters`` 0 it runs the base model without LoRA. ``on_dead`` of the context is called once, when vLLM's
    process has died or has finished no forward pass for ``hang_seconds`` while requests waited.
    """

    def __init__(self, settings: VllmSettings, context: EngineContext) -> None:
        bank, tokenizer, device = context.bank, context.tokenizer, context.device
        config = load_config(context.model_path, context.trust_remote_code)
        dtype, positions = pick_dtype(context.dtype, device), context_length(config)
        rank = lora_rank(joined_rank(bank, context.max_adapters)) if context.max_adapters else 0
        assert rank is not None  # `start_vllm` has refused it
        self.settings, self._encode, self._on_dead = settings, context.encode, context.on_dead
        self._vocabulary = int(config.get_text_config().vocab_size)
        self._ends = end_tokens(load_generation_config(context.model_path, config), tokenizer)
        constraints = Constraints(tokenizer, self._vocabulary, self._ends)
        self._decoder = Decoder(tokenizer, constraints, self._vocabulary, self._ends, settings.seed, context.sampling)
        self._limits = PromptLimits(self._vocabulary, positions, positions)
        self._files = MixtureFiles(bank, settings.folder)
        # On a CPU, vLLM 0.32 applies the adapter of the last slot to tokens without one, whose slot index is -1.
        self._base_needs_adapter = bool(rank) and device == "cpu"
        self._unanswered = 0
        self._watch = PassWatch(context.hang_seconds, context.on_dead)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="vllm").start()
        prepare_environment(device, context.threads)
        self._guard = Guard(self._files.folder)
        try:
            with self._guard.starting():
                model = VllmModel(context.model_path, dtype, context.trust_remote_code, positions)
                self._run(self._start(engine_arguments(model, settings, device, rank, bank.modules)))
        except BaseException:
            self._guard.close()
            self._files.close()
            raise
        self._guard.hold(self.process_ids)
        atexit.register(self.close)  # at interpreter exit vLLM's destructor fails: its modules are gone

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """Answer the requests, in order; blocks until all are answered."""
        if not requests:
            return []
        with self._files.holding({request.mixture for request in requests}) as files, self._watch.watching():
            answers: list[Outcome] = self._run(self._answer_all(requests, files))
            return answers

    def load(self) -> EngineLoad:
        """Return the load as of vLLM's last forward pass."""
        stats, cache = self._watch.last_stats, self._llm.vllm_config.cache_config
        limit = (cache.num_gpu_blocks or 1) * cache.block_size
        running = stats.num_running_reqs if stats else 0
        return EngineLoad(
            running,
            self.settings.batch_size,
            max(0, self._unanswered - running),
            len(stats.running_lora_adapters) if stats else 0,
            round(limit * (stats.kv_cache_usage if stats else 0.0)),
            limit,
            self._files.written,
            self._files.removed,
        )

    def close(self) -> None:
        """Stop vLLM's processes and remove the files of mixtures. Later requests raise."""
        atexit.unregister(self.close)
        self._run(self._shut_down())
        self._guard.close()
        del self._llm
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._files.close()

    def reset_prefix_cache(self) -> None:
        """Empty the prefix cache."""
        self._run(self._llm.reset_prefix_cache())

    @property
    def process_ids(self) -> list[int]:
        """Ids of vLLM's own processes."""
        manager = self._llm.engine_core.resources.engine_manager
        return [process.pid for process in manager.processes] if manager else []

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _shut_down(self) -> None:
        handler = self._llm.output_handler
        if handler is not None:  # it would report the shutdown as a crash
            handler.cancel()
            await asyncio.wait([handler])
        self._llm.shutdown()

    async def _start(self, arguments: dict[str, Any]) -> None:
        self._llm = start(arguments, self._watch.record_pass)
        if arguments["enable_lora"] and self._files.zero_adapter:
            # Adapters that vLLM's layers of this model reject fail here, instead of killing the engine later.
            await self._llm.add_lora(_lora_request(self._files.zero_adapter))
            await self._check_modules(self._files.zero_adapter)

    async def _check_modules(self, zero: MixtureFile) -> None:
        """Raise `RuntimeError` if adapters change nothing: vLLM silently skips modules that it does not know."""
        tokens = [min(self._vocabulary - 1, 100 + index) for index in range(8)]

        async def likelihood(file: MixtureFile) -> float:
            output = await self._output(tokens, scoring_params(tokens[0]), _lora_request(file))
            return choice_score(output, tokens[:1])

        base = await likelihood(zero)
        with self._files.probing() as files:
            ignored = [name for name, file in files.items() if await likelihood(file) == base]
        if ignored:
            raise RuntimeError(f"vLLM applies no adapter to {', '.join(ignored)} of this model; use engine=native")

    async def _answer_all(self, requests: Sequence[Request], files: dict[Mixture, MixtureFile]) -> list[Outcome]:
        self._unanswered += len(requests)
        try:
            answers = (self._answer(request, files.get(request.mixture)) for request in requests)
            return list(await asyncio.gather(*answers))
        finally:
            self._unanswered -= len(requests)

    async def _answer(self, request: Request, file: MixtureFile | None) -> Outcome:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        sampling = self._decoder.sampling_of(request)
        file = file or (self._files.zero_adapter if self._base_needs_adapter else None)
        lora = _lora_request(file) if file else None
        problem = sampling_problem(sampling) or capabilities(self.settings).temperature_problem(sampling.temperature)
        if problem:
            return Failure("BadSampling", problem)
        try:
            if sampling.choices:
                return await self._choose(request, sampling, lora)
            return await self._generate(request, sampling, lora)
        except EngineDeadError:
            self._on_dead()
            raise
        except VLLMClientError as error:
            return Failure("BadRequest", " ".join(str(error).split())[:300])
        except EngineGenerateError as error:
            cause = error.__cause__ or error
            return Failure(type(cause).__name__, " ".join(str(cause).split())[:300] or "vLLM failed on this record")

    async def _generate(self, request: Request, sampling: Sampling, lora: Any) -> Outcome:
        problem = self._limits.problem(request, sampling.max_new_tokens) or self._decoder.problem(request)
        if problem:
            return problem
        parts = [replace(request, answer_index=index) for index in range(sampling.n)]
        params = [sampling_params(part, sampling, self.settings.seed, self._ends) for part in parts]
        outputs = await asyncio.gather(*(self._output(request.tokens, own, lora) for own in params))
        answers = zip(parts, outputs, strict=True)
        return join_outcomes([completion(self._decoder, part, output.outputs[0]) for part, output in answers])

    async def _choose(self, request: Request, sampling: Sampling, lora: Any) -> Outcome:
        """Score each choice as a continuation of the prompt and choose by the sums of log probabilities."""
        item = Choices(request, self._encode(sampling.choices))
        problem = self._limits.choices_problem(request, [len(tokens) for tokens in item.choices])
        if problem:
            return problem
        scored = (
            self._output([*request.tokens, *tokens[:-1]], scoring_params(tokens[-1]), lora) for tokens in item.choices
        )
        outputs = await asyncio.gather(*scored)
        scores = [choice_score(output, tokens) for output, tokens in zip(outputs, item.choices, strict=True)]
        if not all(map(isfinite, scores)):
            return Failure("NonFiniteLogits", "the model gave NaN or infinite logits")
        return choice_outcome(item, scores, sampling, self.settings.seed)

    async def _output(self, tokens: Sequence[int], params: Any, lora: Any) -> Any:
        from vllm.inputs import tokens_input

        final = None
        name = os.urandom(8).hex()  # vLLM needs unique request ids; ids of records may repeat
        async for output in self._llm.generate(tokens_input(list(tokens)), params, name, lora_request=lora):
            final = output
        assert final is not None
        return final


def _lora_request(file: MixtureFile) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(file.name, file.number, file.path)
