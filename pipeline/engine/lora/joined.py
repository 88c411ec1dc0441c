"""Base weights with room for B beside them: one product computes a module and its adapters."""

from collections.abc import Iterable

import torch
from torch import nn

from .layers import plain_weight
from .layout import Site
from .panel import Base

# Weights of the largest module that is joined: 2 MiB in bf16. A call costs a CPU about 20 microseconds however small it
# is (measured; oneDNN, two threads), which larger modules do not notice; their copies would only take memory.
_MOST = 2**20


def joinable(sites: Iterable[Site], dtype: torch.dtype, device: torch.device) -> Base:
    """Base weights [out x in] by out features, in the order of their places, where all of one size can be joined.

    On a GPU nothing is joined: recorded steps (`engine/graphs`) pay no calls.
    """
    if device.type != "cpu":
        return {}
    by_out: dict[int, list[Site]] = {}
    for site in sites:
        by_out.setdefault(site.out[0], []).append(site)
    found = {}
    for out, same in by_out.items():
        weights = [_small_plain_weight(site.module, dtype) for site in sorted(same, key=lambda s: s.out[1])]
        base = [weight for weight in weights if weight is not None]
        if len(base) == len(weights) and len({weight.shape for weight in base}) == 1:
            found[out] = base
    return found


def _small_plain_weight(module: nn.Module, dtype: torch.dtype) -> torch.Tensor | None:
    weight = plain_weight(module) if type(module) is nn.Linear else None
    return weight if weight is not None and weight.dtype is dtype and weight.numel() <= _MOST else None
