"""The vLLM engine: each mixture is written as one LoRA adapter of the joined rank, which vLLM serves.

vLLM is imported only when `backend.VllmBackend` starts.
"""

from pipeline.engine.backend import Backend, BackendSpec, Capabilities, EngineContext

from .check import check_bank
from .settings import VllmSettings

MAX_TEMPERATURE = 2.0
"""The highest temperature that vLLM accepts."""


def capabilities(settings: VllmSettings) -> Capabilities:
    """Return what vLLM can do with its settings."""
    return Capabilities(
        sentences="engine=vllm gives each request one mixture; use engine=native",
        quantization="engine=vllm does not load such models; use engine=native",
        several_gpus="with engine.over_rank=native the native engine may answer, which runs a model on one GPU; set"
        " engine.over_rank=refuse and lower routing.max_adapters, or give each actor one GPU"
        if settings.over_rank == "native"
        else "",
        max_temperature=MAX_TEMPERATURE,
        max_mixtures=settings.max_loras,
    )


def _start(settings: VllmSettings, context: EngineContext) -> Backend:
    from .backend import start_vllm

    return start_vllm(settings, context)


SPEC = BackendSpec(VllmSettings, capabilities, _start, check_bank, "vllm")
