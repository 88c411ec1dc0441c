"""Base weights that are stored beside B: one product then computes a module and its adapters."""

from collections.abc import Sequence

import torch
from torch import nn

from .layers import plain_weight
from .layout import OutKind, Site
from .panel import Base

# Maximum weights of a joined module: 2 MiB in bf16. Each call costs a CPU about 20 microseconds (measured; oneDNN, two
# threads), which is negligible for larger modules, whose copies would only take memory.
_MAX_WEIGHTS = 2**20


def joinable(sites: Sequence[Site], dtype: torch.dtype, device: torch.device) -> Base:
    """Return the base weights of the kinds of modules that can be joined, always with all modules of the same input.

    On a GPU nothing is joined: recorded steps (`engine/graphs`) have no cost per call.
    """
    by_kind: dict[OutKind, list[torch.Tensor]] = {}
    apart: set[OutKind] = set()
    for site in sorted(sites, key=lambda site: site.index):
        weight = _small_plain_weight(site.module, dtype) if device.type == "cpu" else None
        if weight is None:
            apart.add(site.kind)
        else:
            by_kind.setdefault(site.kind, []).append(weight)
    together: dict[int, set[OutKind]] = {}
    for site in sites:
        together.setdefault(id(site.inputs), set()).add(site.kind)
    while more := {kind for kinds in together.values() if kinds & apart for kind in kinds} - apart:
        apart |= more
    return {kind: weights for kind, weights in by_kind.items() if kind not in apart}


def _small_plain_weight(module: nn.Module, dtype: torch.dtype) -> torch.Tensor | None:
    weight = plain_weight(module) if type(module) is nn.Linear else None
    return weight if weight is not None and weight.dtype is dtype and weight.numel() <= _MAX_WEIGHTS else None
