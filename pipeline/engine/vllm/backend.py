"""vLLM as a `Backend`: threads hand in requests, and vLLM answers each with its mixtures."""

import asyncio
import atexit
import os
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from math import isfinite
from typing import Any

from pipeline.adapters import AdapterBank
from pipeline.engine.backend import EngineContext, EngineLoad
from pipeline.engine.core.decoder import Decoder
from pipeline.engine.core.limits import PromptLimits, context_length, end_tokens
from pipeline.engine.core.parallel_sampling import join_outcomes
from pipeline.engine.overrides import sampling_problem
from pipeline.engine.request import Failure, Outcome, Request, Sampling
from pipeline.engine.sampling.constraints import Constraints
from pipeline.engine.scoring.choices import choice_outcome
from pipeline.engine.scoring.score import Choices
from pipeline.engine.sequence import Sequence as Answer
from pipeline.models import load_config, load_generation_config, pick_dtype

from . import capabilities
from .check import check_bank, check_copies
from .engine import VllmModel, engine_arguments, prepare_environment, start
from .guard import Guard
from .mixing.plugin import check_plugin
from .mixtures import RequestMixtures
from .params import choice_score, completion, sampling_params, scoring_params
from .rerouting import answer_by_sentence
from .settings import VllmSettings
from .watch import PassWatch


class VllmBackend:
    """Answers requests with vLLM. Requests of all threads that call `answer` run together.

    With ``max_adapters`` 0 it runs the base model without LoRA. ``on_dead`` of the context is called once, when vLLM's
    process has died or has finished no forward pass for ``hang_seconds`` while requests waited. Raises `UserError` for
    a bank that it cannot mix, and for a version of vLLM that does not fit.
    """

    def __init__(self, settings: VllmSettings, context: EngineContext) -> None:
        tokenizer, device = context.tokenizer, context.device
        check_bank(settings, context.bank, context.max_adapters)
        check_copies(context.bank, context.model_path, context.trust_remote_code)
        config = load_config(context.model_path, context.trust_remote_code)
        dtype, positions = pick_dtype(context.dtype, device), context_length(config)
        self.settings, self._encode, self._on_dead = settings, context.encode, context.on_dead
        self._reroute = context.reroute
        self._vocabulary = int(config.get_text_config().vocab_size)
        self._ends = end_tokens(load_generation_config(context.model_path, config), tokenizer)
        constraints = Constraints(tokenizer, self._vocabulary, self._ends)
        self._decoder = Decoder(tokenizer, constraints, self._vocabulary, self._ends, settings.seed, context.sampling)
        self._limits = PromptLimits(self._vocabulary, positions, positions)
        self._bank = context.bank if context.max_adapters else None
        self._mixtures = RequestMixtures(self._bank.names if self._bank else (), settings.adapter_slots)
        self._unanswered: Counter[str] = Counter()  # requests in flight, by their mixtures
        self._watch = PassWatch(context.hang_seconds, context.on_dead)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="vllm").start()
        prepare_environment(device, context.threads, mixes=self._bank is not None)
        if self._bank:
            check_plugin()
        self._guard = Guard()
        try:
            with self._guard.starting():
                model = VllmModel(context.model_path, dtype, context.trust_remote_code, positions)
                self._run(self._start(engine_arguments(model, settings, device, self._bank)))
        except BaseException:
            self._guard.close()
            raise
        self._guard.hold(self.process_ids)
        atexit.register(self.close)

    def answer(self, requests: Sequence[Request]) -> list[Outcome]:
        """Answer the requests, in order; blocks until all are answered. Raises `UserError` for unknown adapters."""
        if not requests:
            return []
        mixtures = [self._mixtures.encode(request) for request in requests]
        with self._watch.watching():
            answers: list[Outcome] = self._run(self._answer_all(requests, mixtures))
            return answers

    def load(self) -> EngineLoad:
        """Return the load as of vLLM's last forward pass."""
        stats, cache = self._watch.last_stats, self._llm.vllm_config.cache_config
        limit = (cache.num_gpu_blocks or 1) * cache.block_size
        running = stats.num_running_reqs if stats else 0
        return EngineLoad(
            running,
            self.settings.batch_size,
            max(0, self._unanswered.total() - running),
            len(self._unanswered),
            round(limit * (stats.kv_cache_usage if stats else 0.0)),
            limit,
            adapter_loads=0,  # vLLM does not report them
            adapter_evictions=0,
        )

    def close(self) -> None:
        """Stop vLLM's processes. Later requests raise."""
        atexit.unregister(self.close)
        self._run(self._shut_down())
        self._guard.close()
        self._loop.call_soon_threadsafe(self._loop.stop)

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
        del self._llm  # at interpreter exit vLLM's destructor fails: its modules are gone

    async def _start(self, arguments: dict[str, Any]) -> None:
        self._llm = start(arguments, self._watch.record_pass)
        try:
            if self._bank:
                await self._load_adapters(self._bank, arguments["max_loras"])
        except BaseException:
            await self._shut_down()
            raise

    async def _load_adapters(self, bank: AdapterBank, slots: int) -> None:
        """Fill the slots, and load an adapter for each other module too: vLLM's layers may lack it.

        Otherwise such an adapter would end the engine when the first record needs it.
        """
        from .mixing.slots import adapter_request

        seen: set[str] = set()
        for name, number in self._mixtures.numbers.items():
            modules = bank.adapters[name].modules.keys()
            if number <= slots or not modules <= seen:
                await self._llm.add_lora(adapter_request(number, name))
                seen |= modules

    async def _answer_all(self, requests: Sequence[Request], mixtures: Sequence[str]) -> list[Outcome]:
        self._unanswered.update(mixtures)
        try:
            return list(await asyncio.gather(*map(self._answer, requests, mixtures)))
        finally:
            self._unanswered -= Counter(mixtures)

    async def _answer(self, request: Request, mixtures: str) -> Outcome:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        sampling = self._decoder.sampling_of(request)
        can = capabilities(self.settings)
        problem = sampling_problem(sampling) or can.sampling_problem(sampling, self._reroute is not None)
        if problem:
            return Failure("BadSampling", problem)
        if refused := self._mixtures.problem(mixtures):
            return refused
        try:
            if sampling.choices:
                return await self._choose(request, sampling, mixtures)
            return await self._generate(request, sampling, mixtures)
        except EngineDeadError:
            self._on_dead()
            raise
        except VLLMClientError as error:
            return Failure("BadRequest", " ".join(str(error).split())[:300])
        except EngineGenerateError as error:
            cause = error.__cause__ or error
            return Failure(type(cause).__name__, " ".join(str(cause).split())[:300] or "vLLM failed on this record")

    async def _generate(self, request: Request, sampling: Sampling, mixtures: str) -> Outcome:
        problem = self._limits.problem(request, sampling.max_new_tokens) or self._decoder.problem(request)
        if problem:
            return problem
        parts = [replace(request, answer_index=index) for index in range(sampling.n)]
        if self._reroute:
            answers = [answer_by_sentence(self._decoder, part, self._reroute, self._continued) for part in parts]
        else:
            answers = [self._complete(self._decoder.start(part), mixtures) for part in parts]
        return join_outcomes(await asyncio.gather(*answers))

    async def _complete(self, seq: Answer, mixtures: str) -> Outcome:
        params = sampling_params(seq, self._ends, mixtures)
        return completion(self._decoder, seq, (await self._output(seq.request.tokens, params, mixtures)).outputs[0])

    async def _continued(self, seq: Answer) -> AsyncGenerator[Any, None]:
        """Generate on from a sequence's tokens; see `rerouting.Continue`."""
        mixtures = self._mixtures.encode(seq.request, seq.sentences)
        problem = self._mixtures.problem(mixtures)
        if problem:
            seq.fail(problem)
            return
        params = sampling_params(seq, self._ends, mixtures, stream=True)
        async with aclosing(self._outputs([*seq.request.tokens, *seq.new_tokens], params, mixtures)) as outputs:
            async for output in outputs:
                yield output.outputs[0]

    async def _choose(self, request: Request, sampling: Sampling, mixtures: str) -> Outcome:
        """Score each choice as a continuation of the prompt and choose by the sums of log probabilities."""
        item = Choices(request, self._encode(sampling.choices))
        problem = self._limits.choices_problem(request, [len(tokens) for tokens in item.choices])
        if problem:
            return problem
        scored = (
            self._output([*request.tokens, *tokens[:-1]], scoring_params(tokens[-1], mixtures), mixtures)
            for tokens in item.choices
        )
        outputs = await asyncio.gather(*scored)
        scores = [choice_score(output, tokens) for output, tokens in zip(outputs, item.choices, strict=True)]
        if not all(map(isfinite, scores)):
            return Failure("NonFiniteLogits", "the model gave NaN or infinite logits")
        return choice_outcome(item, scores, sampling, self.settings.seed)

    async def _output(self, tokens: Sequence[int], params: Any, mixtures: str) -> Any:
        [output] = [output async for output in self._outputs(tokens, params, mixtures)]
        return output

    def _outputs(self, tokens: Sequence[int], params: Any, mixtures: str) -> AsyncGenerator[Any, None]:
        from vllm.inputs import tokens_input

        # Equal tokens have equal keys and values in the prefix cache only if their mixtures are equal too.
        prompt = tokens_input(list(tokens), cache_salt=mixtures or None)
        name = os.urandom(8).hex()  # vLLM needs unique request ids; ids of records may repeat
        outputs: AsyncGenerator[Any, None] = self._llm.generate(prompt, params, name)
        return outputs
