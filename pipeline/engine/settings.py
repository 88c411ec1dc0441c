"""How the engine works: plain values, which travel without it."""

from dataclasses import dataclass, field

from .lora.settings import LoraSettings
from .vllm.settings import VllmSettings


@dataclass(frozen=True)
class EngineSettings:
    """How fast answers come, and in how much memory; ``seed`` alone decides what they are.

    ``batch_size``: rows at a time. ``prefill_tokens``: prompt tokens of one pass. ``kv_tokens``: positions of the KV
    cache, 0: as the device's memory allows. ``look_ahead``: requests that are read ahead, 0: four times the rows.
    ``reuse_prefixes``: what prompts of one mixture have in common runs once. ``cuda_graphs``: on a GPU, decode steps
    are recorded and replayed. ``vllm``: vLLM answers; of the others it takes ``batch_size``, ``prefill_tokens``,
    ``seed``, ``reuse_prefixes`` and ``cuda_graphs``. None: the native engine.
    """

    batch_size: int = 32
    prefill_tokens: int = 2048
    seed: int = 0
    kv_tokens: int = 0
    look_ahead: int = 0
    reuse_prefixes: bool = True
    cuda_graphs: bool = True
    lora: LoraSettings = field(default_factory=LoraSettings)
    vllm: VllmSettings | None = None

    @property
    def most_waiting(self) -> int:
        """Requests that wait at most."""
        return self.look_ahead or 4 * self.batch_size
