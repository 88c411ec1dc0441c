"""Start vLLM: its environment and its arguments."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.adapters import AdapterBank

from .check import lora_rank
from .settings import VllmSettings
from .support import QUIET

_GB = 2**30
_ON_HOST = 4  # adapters in memory for each slot: loading those again takes no reading


@dataclass(frozen=True)
class VllmModel:
    """The base model. ``folder``: a folder or a hub id; ``context``: maximum positions of a sequence."""

    folder: str
    dtype: torch.dtype
    trust_remote_code: bool
    context: int


def prepare_environment(device: str, threads: int, mixes: bool = False) -> None:
    """Set the environment variables that vLLM reads when it is imported; those already set are kept.

    On a CPU, vLLM would pin its threads to the first cores of the machine and leave one core free. Actors on one
    machine would then compete for the same cores, so they share the machine by ``threads`` instead. ``mixes``: the
    engine mixes adapters, for which vLLM's second model runner does not keep the settings of requests.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if mixes:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if device == "cpu":
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # Ray sets it to the actor's share of a CPU
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait would take the CPU from other actors


def engine_arguments(model: VllmModel, settings: VllmSettings, device: str, bank: AdapterBank | None) -> dict[str, Any]:
    """Return the arguments of `AsyncEngineArgs`. ``bank``: whose adapters are mixed; None for the base model alone."""
    kv_bytes = int(settings.kv_gb * _GB)
    if not kv_bytes and device == "cpu":  # vLLM would take nine tenths of the machine's memory
        kv_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    return {
        "model": model.folder,
        "dtype": str(model.dtype).removeprefix("torch."),
        "trust_remote_code": model.trust_remote_code,
        "max_model_len": model.context,
        "max_num_seqs": settings.batch_size,
        # A prompt that is divided over passes draws a token in each, and on a CPU vLLM cannot take such a draw back.
        "enable_chunked_prefill": device != "cpu",
        "max_num_batched_tokens": max(
            settings.prefill_tokens, settings.batch_size, model.context if device == "cpu" else 0
        ),
        "enable_prefix_caching": settings.reuse_prefixes,
        "enforce_eager": settings.enforce_eager or (device == "cpu" and not _has_compiler()),
        "tensor_parallel_size": settings.tensor_parallel,
        "seed": 0,
        "disable_log_stats": True,
        "generation_config": "vllm",  # sampling settings come from this program alone
        "structured_outputs_config": {"backend": "guidance"},
        **(_mixing_arguments(settings, bank) if bank else {}),
        **({"kv_cache_memory_bytes": kv_bytes} if kv_bytes else {}),
    }


def _mixing_arguments(settings: VllmSettings, bank: AdapterBank) -> dict[str, Any]:
    from .mixing.slots import mixing_config

    slots = min(settings.adapter_slots, len(bank.names))
    return {
        "enable_lora": True,
        "max_loras": slots,
        "max_cpu_loras": min(_ON_HOST * slots, len(bank.names)),
        "max_lora_rank": lora_rank(bank),
        # Without it, vLLM gives slots to every linear layer, even where no adapter changes it.
        "lora_target_modules": sorted({module.rsplit(".", 1)[-1] for module in bank.modules}),
        "scheduler_cls": "pipeline.engine.vllm.mixing.scheduler.create_scheduler",
        "additional_config": mixing_config(bank),
    }


def _has_compiler() -> bool:
    """Whether there is the C++ compiler with which torch.compile makes code for a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def start(arguments: dict[str, Any], on_pass: Callable[[Any], None]) -> Any:
    """Start vLLM's `AsyncLLM` in the running event loop. ``on_pass`` gets the scheduler stats after each pass."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.loggers import StatLoggerBase

    class PassLogger(StatLoggerBase):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            pass

        def record(self, scheduler_stats: Any, *args: Any, **kwargs: Any) -> None:
            on_pass(scheduler_stats)

        def log_engine_initialized(self) -> None:
            pass

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[PassLogger])
