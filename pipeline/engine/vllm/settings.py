"""How vLLM runs: plain values, which travel without it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class VllmSettings:
    """What vLLM alone needs to know, beside `EngineSettings`.

    ``max_loras``: distinct mixtures that run at the same time, and that a shard may have. ``over_rank``: what becomes
    of a bank whose mixtures may have a joined rank that vLLM does not take: it is refused, or the native engine
    answers. ``folder``: where mixtures are written; None: shared memory where there is some, else the temporary
    folder. ``kv_gb``: GB of the KV cache, 0: a quarter of a machine's memory, or what vLLM takes of a GPU.
    ``tensor_parallel``: GPUs that one model is divided over.
    """

    max_loras: int = 16
    over_rank: Literal["refuse", "native"] = "refuse"
    folder: str | None = None
    kv_gb: float = 0.0
    tensor_parallel: int = 1
