"""Starting vLLM: its environment, its arguments, and what is watched of it while it runs."""

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.engine.settings import EngineSettings

from .settings import VllmSettings

_GB = 2**30


@dataclass(frozen=True)
class VllmModel:
    """The base model as vLLM takes it. ``folder``: a folder or a hub id; ``context``: positions that may be used."""

    folder: str
    dtype: torch.dtype
    trust_remote_code: bool
    context: int


def prepare_environment(device: str, threads: int) -> None:
    """Set what vLLM reads from the environment when it is imported; what is set already stays.

    On a CPU it would pin its threads to the first cores of the machine and keep one free, so that the actors of a
    machine got in each other's way: they share it by ``threads`` here.
    """
    for name, value in {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}.items():
        os.environ.setdefault(name, value)
    if device == "cpu":
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Ray sets it to the actor's share of a CPU


def engine_arguments(
    model: VllmModel, settings: EngineSettings, device: str, rank: int, modules: Collection[str]
) -> dict[str, Any]:
    """Arguments of `AsyncEngineArgs`. ``rank``: of `lora_rank`, 0: without adapters; ``modules``: that they change."""
    own = settings.vllm
    assert own is not None
    lora = {
        "max_loras": own.max_loras,
        "max_cpu_loras": 2 * own.max_loras,  # two shards run at once in an actor
        "max_lora_rank": rank,
        # Else each linear layer runs the products of adapters, those that no adapter changes too.
        "lora_target_modules": sorted({module.rsplit(".", 1)[-1] for module in modules}),
    }
    return {
        "model": model.folder,
        "dtype": str(model.dtype).removeprefix("torch."),
        "trust_remote_code": model.trust_remote_code,
        "max_model_len": model.context,
        "max_num_seqs": settings.batch_size,
        "max_num_batched_tokens": max(settings.prefill_tokens, settings.batch_size),
        "enable_prefix_caching": settings.reuse_prefixes,
        "enforce_eager": device == "cpu" or not settings.cuda_graphs,
        "tensor_parallel_size": own.tensor_parallel,
        "seed": 0,
        "enable_lora": bool(rank),
        "disable_log_stats": True,
        "generation_config": "vllm",  # settings are this program's alone
        "structured_outputs_config": {"backend": "guidance"},
        **(lora if rank else {}),
        **_memory(own, device),
    }


def start(arguments: dict[str, Any], on_pass: Callable[[Any], None]) -> Any:
    """vLLM's `AsyncLLM`; call it in the event loop that is to serve it. ``on_pass``: gets the stats of each pass."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase

    class Passes(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, *args: Any, **kwargs: Any) -> None:
            on_pass(scheduler_stats)

        def log_engine_initialized(self) -> None:
            pass

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[Passes])


def _memory(own: VllmSettings, device: str) -> dict[str, Any]:
    if own.kv_gb:
        return {"kv_cache_memory_bytes": int(own.kv_gb * _GB)}
    if device == "cpu":  # else it takes nine tenths of the machine
        return {"kv_cache_memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4}
    return {}
