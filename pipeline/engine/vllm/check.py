"""Refuse adapters that vLLM does not compute as the native engine does, before any work."""

from collections.abc import Iterator

from pipeline.adapters import AdapterBank, ModuleWeights
from pipeline.errors import UserError

from .ranks import RANKS, joined_rank, lora_rank
from .settings import VllmSettings


def check_bank(settings: VllmSettings, bank: AdapterBank, max_adapters: int) -> None:
    """Raise `UserError` if vLLM cannot compute mixtures of up to ``max_adapters`` adapters of a bank.

    That is, for the first adapter that has more than A and B of linear layers, and for joined ranks above vLLM's
    maximum unless ``settings`` leave those to the native engine.
    """
    if not max_adapters:
        return
    for name in bank.names:
        for module, weights in bank.adapters[name].modules.items():
            for problem in _problems(module, weights):
                raise UserError(
                    f"bank: adapter {name!r} {problem}, which engine=vllm does not compute; use engine=native"
                    f" ({bank.folder / name})"
                )
    rank = joined_rank(bank, max_adapters)
    if lora_rank(rank) is None and settings.over_rank == "refuse":
        raise UserError(
            f"config: engine=vllm: mixtures of {max_adapters} adapters of this bank may have rank {rank}, and vLLM"
            f" takes {RANKS[-1]} at most; lower routing.max_adapters, use engine=native, or set engine.over_rank=native"
            f" ({bank.folder})"
        )


def _problems(module: str, weights: ModuleWeights) -> Iterator[str]:
    if weights.magnitude is not None:
        yield f"is a DoRA adapter ({module} has a magnitude vector)"
    if weights.bias is not None:
        yield f"has a lora_bias at {module}"
    if weights.embedding:
        yield f"changes the embedding {module}"
    if weights.base or module.rsplit(".", 1)[-1] == "lm_head":
        yield f"changes {module}, the model's head,"
