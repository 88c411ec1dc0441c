"""vLLM behind the interface of the native engine: several threads ask, mixtures are written, answers come back."""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

from pipeline.adapters import AdapterBank
from pipeline.engine.backend import Load
from pipeline.engine.core.answers import together
from pipeline.engine.core.limits import PromptLimits
from pipeline.engine.overrides import sampling_problem
from pipeline.engine.request import Failure, Request, Sampling
from pipeline.engine.sampling.constraints import Constraints
from pipeline.engine.sampling.decoder import Decoder
from pipeline.engine.scoring.choices import Encode, chosen
from pipeline.engine.scoring.score import Choices
from pipeline.engine.settings import EngineSettings
from pipeline.records import Completion, Mixture

from .check import temperature_problem
from .engine import VllmModel, engine_arguments, prepare_environment, start
from .files import MixtureFile, MixtureFiles
from .guard import Guard
from .params import choice_score, completion, sampling_params, scoring_params
from .ranks import joined_rank, lora_rank
from .watch import PassWatch

Answer = Completion | Failure


@dataclass(frozen=True)
class Ends:
    """What a tokenizer and a model say of answers. ``tokens``: those that end one."""

    tokenizer: Any
    vocabulary: int
    tokens: set[int]


class VllmBackend:
    """Answers requests with vLLM. `answer` may be called from any number of threads: their requests run together.

    ``most_adapters``: of a mixture; 0: the base model alone, and vLLM runs without adapters. ``encode``: see
    `choices.Encode`. ``on_dead``: called once vLLM's own process has died or has ended no pass for ``hang_seconds``
    while requests waited; it should end this process, since callers would wait for ever.
    """

    def __init__(
        self,
        model: VllmModel,
        ends: Ends,
        bank: AdapterBank,
        settings: EngineSettings,
        sampling: Sampling,
        encode: Encode,
        most_adapters: int,
        device: str,
        threads: int,
        hang_seconds: float,
        on_dead: Callable[[], None],
    ) -> None:
        assert settings.vllm is not None
        rank = lora_rank(joined_rank(bank, most_adapters)) if most_adapters else 0
        assert rank is not None  # `check_bank` has refused it
        self.settings, self._ends, self._encode, self._on_dead = settings, ends, encode, on_dead
        constraints = Constraints(ends.tokenizer, ends.vocabulary, ends.tokens)
        self._decoder = Decoder(ends.tokenizer, constraints, ends.vocabulary, ends.tokens, settings.seed, sampling)
        self._limits = PromptLimits(ends.vocabulary, model.context, model.context)
        self._files = MixtureFiles(bank, settings.vllm.folder)
        # On a CPU, vLLM 0.32 gives tokens without an adapter the adapter in its last slot (its index is -1 there).
        self._base_needs_adapter = bool(rank) and device == "cpu"
        self._unanswered = 0
        self._watch = PassWatch(hang_seconds, on_dead)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="vllm").start()
        prepare_environment(device, threads)
        self._guard = Guard(self._files.folder)
        try:
            with self._guard.starting():
                self._run(self._start(engine_arguments(model, settings, device, rank, bank.modules)))
        except BaseException:
            self._guard.close()
            self._files.close()
            raise
        self._guard.hold(self.process_ids)
        atexit.register(self.close)  # later, vLLM's own destructor fails for want of its modules

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """The answer to each request, in order; blocks until all are there."""
        if not requests:
            return []
        with self._files.holding({request.mixture for request in requests}) as files, self._watch.watching():
            answers: list[Answer] = self._run(self._answer_all(requests, files))
            return answers

    def load(self) -> Load:
        """What vLLM is busy with, as of its last pass."""
        stats, cache = self._watch.last, self._llm.vllm_config.cache_config
        limit = (cache.num_gpu_blocks or 1) * cache.block_size
        running = stats.num_running_reqs if stats else 0
        return Load(
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
        """End vLLM's processes and remove what was written. Later requests raise."""
        atexit.unregister(self.close)
        self._run(self._shut_down())
        self._guard.close()
        del self._llm
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._files.close()

    def forget_prefixes(self) -> None:
        """Let go of the prompts that are kept for later ones that begin alike."""
        self._run(self._llm.reset_prefix_cache())

    @property
    def process_ids(self) -> list[int]:
        """Processes of vLLM's own."""
        manager = self._llm.engine_core.resources.engine_manager
        return [process.pid for process in manager.processes] if manager else []

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _shut_down(self) -> None:
        handler = self._llm.output_handler
        if handler is not None:  # it would take the end of the engine for its death
            handler.cancel()
            await asyncio.wait([handler])
        self._llm.shutdown()

    async def _start(self, arguments: dict[str, Any]) -> None:
        self._llm = start(arguments, self._watch.passed)
        if arguments["enable_lora"] and self._files.nothing:
            # What the model's layers in vLLM do not take is told now, rather than by the death of the engine.
            await self._llm.add_lora(_lora_request(self._files.nothing))
            await self._check_modules(self._files.nothing)

    async def _check_modules(self, nothing: MixtureFile) -> None:
        """`RuntimeError` where adapters change nothing: vLLM leaves out modules it does not know, and says nothing."""
        tokens = [min(self._ends.vocabulary - 1, 100 + place) for place in range(8)]

        async def likelihood(file: MixtureFile) -> float:
            output = await self._output(tokens, scoring_params(tokens[0]), _lora_request(file))
            return choice_score(output, tokens[:1])

        base = await likelihood(nothing)
        with self._files.probing() as files:
            ignored = [name for name, file in files.items() if await likelihood(file) == base]
        if ignored:
            raise RuntimeError(f"vLLM applies no adapter to {', '.join(ignored)} of this model; use engine=native")

    async def _answer_all(self, requests: Sequence[Request], files: dict[Mixture, MixtureFile]) -> list[Answer]:
        self._unanswered += len(requests)
        try:
            asked = (self._answer(request, files.get(request.mixture)) for request in requests)
            return list(await asyncio.gather(*asked))
        finally:
            self._unanswered -= len(requests)

    async def _answer(self, request: Request, file: MixtureFile | None) -> Answer:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        sampling = self._decoder.sampling_of(request)
        file = file or (self._files.nothing if self._base_needs_adapter else None)
        lora = _lora_request(file) if file else None
        problem = sampling_problem(sampling) or temperature_problem(sampling.temperature)
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

    async def _generate(self, request: Request, sampling: Sampling, lora: Any) -> Answer:
        problem = self._limits.problem(request, sampling) or self._decoder.problem(request)
        if problem:
            return problem
        parts = [replace(request, number=number) for number in range(sampling.n)]
        answers = list(await asyncio.gather(*(self._one(part, sampling, lora) for part in parts)))
        return answers[0] if len(answers) == 1 else together(answers)

    async def _one(self, part: Request, sampling: Sampling, lora: Any) -> Answer:
        params = sampling_params(part, sampling, self.settings.seed, self._ends.tokens)
        output = await self._output(part.tokens, params, lora)
        return completion(self._decoder, part, output.outputs[0])

    async def _choose(self, request: Request, sampling: Sampling, lora: Any) -> Answer:
        """Each choice but its last token is a prompt of its own behind the request's; vLLM gives log probabilities."""
        item = Choices(request, self._encode(sampling.choices))
        problem = self._limits.choices_problem(request, [len(tokens) for tokens in item.choices])
        if problem:
            return problem
        asked = (
            self._output([*request.tokens, *tokens[:-1]], scoring_params(tokens[-1]), lora) for tokens in item.choices
        )
        outputs = await asyncio.gather(*asked)
        scores = [choice_score(output, tokens) for output, tokens in zip(outputs, item.choices, strict=True)]
        if not all(map(isfinite, scores)):
            return Failure("NonFiniteLogits", "the model gave NaN or infinite logits")
        return chosen(item, scores, sampling, self.settings.seed)

    async def _output(self, tokens: Sequence[int], params: Any, lora: Any) -> Any:
        from vllm.inputs import tokens_input

        final = None
        # Names of requests are vLLM's affair: ids of records need not be unique in it.
        name = os.urandom(8).hex()
        async for output in self._llm.generate(tokens_input(list(tokens)), params, name, lora_request=lora):
            final = output
        assert final is not None
        return final


def _lora_request(file: MixtureFile) -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(file.name, file.number, file.path)
