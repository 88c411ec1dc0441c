"""The rank that a mixture has as one adapter, and the rank that vLLM must be started with."""

from pipeline.adapters import AdapterBank
from pipeline.records import Mixture

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM takes for `max_lora_rank` (its `MaxLoRARanks`)."""


def mixture_rank(bank: AdapterBank, mixture: Mixture) -> int:
    """The largest rank that a mixture has at any module: the sum of those of its adapters there; 0 of the base."""
    ranks: dict[str, int] = {}
    for name in mixture.adapters:
        for module, weights in bank.adapters[name].modules.items():
            ranks[module] = ranks.get(module, 0) + weights.rank
    return max(ranks.values(), default=0)


def joined_rank(bank: AdapterBank, most_adapters: int) -> int:
    """The largest rank that any mixture of up to ``most_adapters`` adapters of a bank can have at a module.

    vLLM takes its rank when it starts, before the mixtures of a shard are known: this is the bound that holds for all.
    """
    ranks: dict[str, list[int]] = {}
    for adapter in bank.adapters.values():
        for module, weights in adapter.modules.items():
            ranks.setdefault(module, []).append(weights.rank)
    return max((sum(sorted(found)[-most_adapters:]) for found in ranks.values() if most_adapters), default=0)


def lora_rank(rank: int) -> int | None:
    """The least rank that vLLM can be started with for adapters of ``rank``; None where it is more than vLLM takes."""
    return next((allowed for allowed in RANKS if allowed >= rank), None)
