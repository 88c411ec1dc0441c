"""Settings of vLLM: plain values, loaded without it."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, MinLen

from pipeline.engine.settings import BackendSettings, PositiveInt


@dataclass(frozen=True)
class VllmSettings(BackendSettings):
    """Settings of vLLM, with the defaults of ``conf/engine/vllm.yaml``.

    ``max_loras``: distinct mixtures per batch and per shard. ``over_rank``: refuse a bank whose mixtures may have a
    joined rank above vLLM's maximum, or let the native engine answer. ``folder``: for the files of mixtures; None for
    shared memory, or the temporary folder if there is none. ``kv_gb``: GB of the KV cache; 0 for a quarter of a
    machine's memory, or vLLM's default on a GPU.
    """

    backend: ClassVar[str] = "vllm"
    batch_size: PositiveInt = 256
    prefill_tokens: PositiveInt = 8192
    max_loras: PositiveInt = 16
    over_rank: Literal["refuse", "native"] = "refuse"
    folder: Annotated[str, MinLen(1)] | None = None
    kv_gb: Annotated[float, Ge(0)] = 0.0
