"""Adapters of one module stacked side by side, as the fused operator wants them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .weights import ModuleWeights


@dataclass(frozen=True)
class StackedModule:
    """``A`` [R x in] and ``B`` [out x R], R = sum of the ranks; ``scale`` [R]; ``slot`` [R]: its adapter."""

    A: torch.Tensor
    B: torch.Tensor
    scale: torch.Tensor
    slot: torch.Tensor
    layout: tuple[tuple[int, int, float], ...]  # (slot, rank, scale): equal layouts share their rank weights


def stack(parts: Sequence[tuple[int, ModuleWeights]], dtype: torch.dtype, device: str) -> StackedModule:
    """Stack (slot, weights) pairs. Scales stay apart, in fp32: folded into bf16 weights they would round."""
    layout = tuple((slot, weights.A.shape[0], weights.scale) for slot, weights in parts)
    ranks = [weights.A.shape[0] for _, weights in parts]
    slots = torch.tensor([slot for slot, _ in parts])
    scales = torch.tensor([weights.scale for _, weights in parts], dtype=torch.float32)
    repeats = torch.tensor(ranks)
    return StackedModule(
        A=torch.cat([weights.A.to(dtype) for _, weights in parts]).to(device),
        B=torch.cat([weights.B.to(dtype) for _, weights in parts], dim=1).contiguous().to(device),
        scale=scales.repeat_interleave(repeats).to(device),
        slot=slots.repeat_interleave(repeats).to(device),
        layout=layout,
    )
