"""The native engine: the fused operator over transformers models, without further dependencies."""

from typing import Any

from pipeline.engine.backend import Backend, BackendSpec, Capabilities, EngineContext
from pipeline.engine.settings import EngineSettings


def _capabilities(settings: EngineSettings) -> Capabilities:
    return Capabilities(
        sentences="",
        quantization="",
        several_gpus="the native engine runs a model on one GPU; use a model that fits one, model.quantization=8bit or"
        " 4bit, or engine=vllm",
    )


def _start(settings: EngineSettings, context: EngineContext) -> Backend:
    from .backend import start_native

    return start_native(settings, context)


def _check_model(folder: str, config: Any) -> None:
    from pipeline.models import check_stored

    check_stored(folder, config)


SPEC = BackendSpec(EngineSettings, _capabilities, _start, check_model=_check_model)
