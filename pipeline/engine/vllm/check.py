"""What vLLM cannot do as the native engine does, refused by name before any work."""

from collections.abc import Iterator
from importlib.util import find_spec

from pipeline.adapters import AdapterBank, ModuleWeights
from pipeline.errors import UserError

from .ranks import RANKS, joined_rank, lora_rank
from .settings import VllmSettings

_HOTTEST = 2.0  # what vLLM takes at most
_INSTEAD = "use engine=native"


def check_installed() -> None:
    """`UserError` where vLLM is not installed."""
    if find_spec("vllm") is None:
        raise UserError("config: engine=vllm needs the package vllm: pip install 'loraloom[vllm]' (docs/engines.md)")


def check_bank(bank: AdapterBank, most_adapters: int, settings: VllmSettings) -> bool:
    """Whether vLLM can answer with mixtures of up to ``most_adapters`` of a bank; False: the native engine shall.

    `UserError` for the first adapter that is more than A and B of linear layers, and for ranks that vLLM does not take,
    unless ``settings`` leave those to the native engine.
    """
    if not most_adapters:
        return True
    for name in bank.names:
        for module, weights in bank.adapters[name].modules.items():
            for problem in _problems(module, weights):
                raise UserError(
                    f"bank: adapter {name!r} {problem}, which engine=vllm does not compute; {_INSTEAD}"
                    f" ({bank.folder / name})"
                )
    rank = joined_rank(bank, most_adapters)
    if lora_rank(rank) is not None:
        return True
    if settings.over_rank == "native":
        return False
    raise UserError(
        f"config: engine=vllm: mixtures of {most_adapters} adapters of this bank may have rank {rank}, and vLLM takes"
        f" {RANKS[-1]} at most; lower routing.max_adapters, {_INSTEAD}, or engine.over_rank=native ({bank.folder})"
    )


def temperature_problem(temperature: float) -> str | None:
    """Why vLLM cannot draw with a temperature; None where it can."""
    if temperature <= _HOTTEST:
        return None
    return f"temperature {temperature:g}: vLLM takes {_HOTTEST:g} at most; {_INSTEAD}"


def _problems(module: str, weights: ModuleWeights) -> Iterator[str]:
    if weights.magnitude is not None:
        yield f"is a DoRA adapter ({module} has a magnitude vector)"
    if weights.bias is not None:
        yield f"has a lora_bias at {module}"
    if weights.embedding:
        yield f"changes the embedding {module}"
    if weights.base or module.rsplit(".", 1)[-1] == "lm_head":
        yield f"changes {module}, the model's head,"
