"""The engine of a generating actor, as the job's settings have it."""

from typing import Any

import torch

from pipeline.adapters import AdapterBank
from pipeline.engine import Engine, Reroute
from pipeline.engine.backend import Backend
from pipeline.engine.core.limits import context_length, end_tokens
from pipeline.engine.native import NativeBackend, leave
from pipeline.engine.serving.heap import keep_freed_memory
from pipeline.engine.vllm.backend import Ends, VllmBackend
from pipeline.engine.vllm.check import check_bank
from pipeline.engine.vllm.engine import VllmModel
from pipeline.models import PromptFormat, load_config, load_generation_config, load_model, load_tokenizer, pick_dtype
from pipeline.routing import Router, SentenceRouter
from pipeline.settings import JobSettings


def start_backend(settings: JobSettings, device: str, threads: int) -> Backend:
    """Load model and bank, and start the engine. ``settings``: of `local.on_this_node`.

    ``threads``: of this process from now on, and of vLLM's.
    """
    torch.set_num_threads(threads)
    model = settings.model
    tokenizer = load_tokenizer(model.folder, model.trust_remote_code)
    bank = AdapterBank.load(settings.bank, settings.adapters)
    most = settings.routing.max_adapters
    if settings.engine.vllm and check_bank(bank, most, settings.engine.vllm):
        return _vllm(settings, tokenizer, bank, device, threads)
    if device == "cpu":
        keep_freed_memory()
    loaded = load_model(model.folder, model.dtype, device, model.trust_remote_code, model.quantization)
    engine = Engine(loaded, tokenizer, bank, settings.engine)
    encode = PromptFormat(tokenizer, model.prompt_format).encode_answer
    return NativeBackend(engine, settings.sampling, encode, _reroute(settings, tokenizer), settings.hang_seconds)


def _reroute(settings: JobSettings, tokenizer: Any) -> Reroute | None:
    if not settings.sentences:
        return None
    return SentenceRouter(Router.load(settings.router), settings.routing, settings.sentences, tokenizer)


def _vllm(settings: JobSettings, tokenizer: Any, bank: AdapterBank, device: str, threads: int) -> VllmBackend:
    model = settings.model
    config = load_config(model.folder, model.trust_remote_code)
    dtype = pick_dtype(model.dtype, device)
    ends = end_tokens(load_generation_config(model.folder, config), tokenizer)
    return VllmBackend(
        VllmModel(model.folder, dtype, model.trust_remote_code, context_length(config)),
        Ends(tokenizer, int(config.get_text_config().vocab_size), ends),
        bank,
        settings.engine,
        settings.sampling,
        PromptFormat(tokenizer, model.prompt_format).encode_answer,
        settings.routing.max_adapters,
        device,
        threads,
        settings.hang_seconds,
        leave,
    )
