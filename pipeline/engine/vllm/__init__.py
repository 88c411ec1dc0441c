"""The vLLM engine: adapters stay in its LoRA slots, and each token has its own weights for them (`mixing`).

vLLM is imported only when `backend.VllmBackend` starts.
"""

from pipeline.engine.backend import Backend, BackendSpec, Capabilities, EngineContext

from .check import check_bank
from .settings import VllmSettings
from .support import model_problem

MAX_TEMPERATURE = 2.0
"""The highest temperature that vLLM accepts."""


def capabilities(settings: VllmSettings) -> Capabilities:
    """Return what vLLM can do with its settings."""
    return Capabilities(
        sentences="",
        quantization="engine=vllm does not load such models; use engine=native",
        several_gpus="",
        max_temperature=MAX_TEMPERATURE,
        resumes_answers=True,
    )


def _start(settings: VllmSettings, context: EngineContext) -> Backend:
    from .backend import VllmBackend

    return VllmBackend(settings, context)


SPEC = BackendSpec(VllmSettings, capabilities, _start, check_bank, "vllm", auto_problem=model_problem)
