"""Refuse adapters that vLLM does not compute as the native engine does, and mixtures that its slots do not hold."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.errors import UserError

from .settings import VllmSettings

if TYPE_CHECKING:  # loads torch
    from pipeline.adapters import AdapterBank, ModuleWeights

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for `max_lora_rank` (its `MaxLoRARanks`)."""


def check_bank(settings: VllmSettings, bank: "AdapterBank", max_adapters: int) -> None:
    """Raise `UserError` if vLLM cannot compute mixtures of up to ``max_adapters`` adapters of a bank.

    That is, for the first adapter that has more than A and B of linear layers, or a rank above vLLM's maximum, and
    for mixtures with more adapters than slots.
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
    if max_adapters > settings.adapter_slots:
        raise UserError(
            f"config: engine.adapter_slots={settings.adapter_slots}: mixtures may have {max_adapters} adapters; raise"
            " it, lower routing.max_adapters, or do without routing.fallback=all"
        )


def _problems(module: str, weights: "ModuleWeights") -> Iterator[str]:
    if weights.magnitude is not None:
        yield f"is a DoRA adapter ({module} has a magnitude vector)"
    if weights.bias is not None:
        yield f"has a lora_bias at {module}"
    if weights.embedding:
        yield f"changes the embedding {module}"
    if module.rsplit(".", 1)[-1] == "lm_head":
        yield f"changes {module}, the model's head,"
    if weights.rank > RANKS[-1]:
        yield f"has rank {weights.rank} at {module}, above {RANKS[-1]}"


def check_copies(bank: "AdapterBank", model: str, trust_remote_code: bool) -> None:
    """Compare the weights of the base model that adapters carry with the model's files, since vLLM does not show its.

    ``model``: its folder or hub id. Raises `UserError` for one that is another or cannot be compared.
    """
    if not any(adapter.copies for adapter in bank.adapters.values()):
        return
    from pipeline.models import StoredWeights, load_config, load_skeleton

    stored = StoredWeights(model, load_skeleton(load_config(model, trust_remote_code), trust_remote_code))
    bank.check_copies(stored.get, model)
    for name in bank.names:
        for weight in bank.adapters[name].copies:
            found = stored.get(weight)
            if found is None or found.is_meta:
                raise UserError(
                    f"bank: adapter {name!r} carries {weight}, and {model} has no file to compare it with, as"
                    f" engine=vllm needs; give the model's folder as model.path, or use engine=native"
                    f" ({bank.folder / name})"
                )


def lora_rank(bank: "AdapterBank") -> int:
    """Return the smallest rank that vLLM accepts for the slots of a bank that `check_bank` has accepted."""
    rank = max((w.rank for adapter in bank.adapters.values() for w in adapter.modules.values()), default=1)
    return next(allowed for allowed in RANKS if allowed >= rank)
