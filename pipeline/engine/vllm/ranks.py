"""The rank of a mixture as one adapter, and the rank that vLLM must be started with."""

from pipeline.adapters import AdapterBank

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for `max_lora_rank` (its `MaxLoRARanks`)."""


def joined_rank(bank: AdapterBank, max_adapters: int) -> int:
    """Return the largest rank that a mixture of up to ``max_adapters`` adapters of a bank can have at a module.

    vLLM is started with a rank before the mixtures of a shard are known, so it needs the bound for all mixtures.
    """
    ranks: dict[str, list[int]] = {}
    for adapter in bank.adapters.values():
        for module, weights in adapter.modules.items():
            ranks.setdefault(module, []).append(weights.rank)
    return max((sum(sorted(found)[-max_adapters:]) for found in ranks.values() if max_adapters), default=0)


def lora_rank(rank: int) -> int | None:
    """Return the smallest rank that vLLM accepts for adapters of ``rank``; None if it is above the maximum."""
    return next((allowed for allowed in RANKS if allowed >= rank), None)
