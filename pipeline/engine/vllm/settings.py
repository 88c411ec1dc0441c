"""Settings of vLLM: plain values, loaded without it."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge

from pipeline.engine.settings import BackendSettings, PositiveInt


@dataclass(frozen=True)
class VllmSettings(BackendSettings):
    """Settings of vLLM, with the defaults of ``conf/engine/vllm.yaml``.

    ``adapter_slots``: adapters on the device at a time, and of a batch; a smaller bank takes fewer. ``kv_gb``: GB of
    the KV cache; 0 for a quarter of a machine's memory, or vLLM's default on a GPU. ``enforce_eager``: neither compile
    forward passes nor record CUDA graphs of them; passes are not compiled on a machine without a C++ compiler either.
    """

    backend: ClassVar[str] = "vllm"
    batch_size: PositiveInt = 256
    prefill_tokens: PositiveInt = 8192
    adapter_slots: PositiveInt = 32
    kv_gb: Annotated[float, Ge(0)] = 0.0
    enforce_eager: bool = False
