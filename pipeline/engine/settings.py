"""Settings of the engines: plain values, loaded without torch.

The settings of an engine are also the schema of ``conf/engine/<backend>.yaml``, except for `FROM_JOB`.
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt

PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
LoraMode = Literal["auto", "union", "gather", "merged"]

FROM_JOB = ("seed", "tensor_parallel")
"""Fields of `BackendSettings` that other keys of a job's config set."""


@dataclass(frozen=True)
class BackendSettings:
    """Settings of every engine. Only ``seed`` decides what the answers are; the others decide speed and memory.

    ``backend``: name of the engine in the config. ``batch_size``: sequences generated at a time. ``prefill_tokens``:
    prompt tokens per forward pass. ``reuse_prefixes``: compute the common beginning of prompts with one mixture once.
    ``tensor_parallel``: GPUs per model.
    """

    backend: ClassVar[str]
    batch_size: PositiveInt = 32
    prefill_tokens: PositiveInt = 2048
    reuse_prefixes: bool = True
    seed: int = 0
    tensor_parallel: int = 1


@dataclass(frozen=True)
class LoraSettings:
    """Settings of the fused operator. They change its results only in how sums are rounded.

    ``mode``: one form for all batches, or ``auto`` for the cheapest form per batch (see `lora.cost`). ``merged``
    applies to batches with a single mixture that can be merged; other batches run as in ``auto``. ``adapter_slots``:
    adapters kept on the device, the least recently used evicted first; 0 keeps all. A batch that needs more loads them,
    and the next batch that needs fewer evicts down to the limit.
    """

    mode: LoraMode = "auto"
    adapter_slots: NonNegativeInt = 0


@dataclass(frozen=True)
class EngineSettings(BackendSettings):
    """Settings of the native engine.

    ``kv_tokens``: positions of the KV cache; 0 sizes it by the device's memory. ``look_ahead``: requests read ahead;
    0 reads four times ``batch_size``. ``cuda_graphs``: record decode steps on a GPU and replay them.
    """

    backend: ClassVar[str] = "native"
    kv_tokens: NonNegativeInt = 0
    look_ahead: NonNegativeInt = 0
    cuda_graphs: bool = True
    lora: LoraSettings = field(default_factory=LoraSettings)

    @property
    def max_waiting(self) -> int:
        """Maximum number of waiting requests."""
        return self.look_ahead or 4 * self.batch_size
