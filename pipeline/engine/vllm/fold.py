"""Fold a mixture into one LoRA adapter: A matrices stacked, B matrices side by side and multiplied by the weights."""

import torch

from pipeline.adapters import AdapterBank
from pipeline.records import Mixture


def fold(bank: AdapterBank, mixture: Mixture) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return A [R x in] and B [out x R], fp32, of each module that the mixture changes: ``y += B A x``.

    R is the sum of the ranks of the adapters that change the module. B includes mixture weight times scale (alpha / r,
    or alpha / sqrt(r)), so the folded adapter has scale 1 and exactly the terms of the mixture.
    """
    parts: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for name, weight in zip(mixture.adapters, mixture.weights, strict=True):
        for module, weights in bank.adapters[name].modules.items():
            # In fp64, rounded once: the product of bf16 values and a weight would be rounded to bf16.
            b = weights.B.double() * (weight * weights.scale)
            parts.setdefault(module, []).append((weights.A.float(), b.float()))
    return {
        module: (torch.cat([a for a, _ in own]), torch.cat([b for _, b in own], 1)) for module, own in parts.items()
    }


def zero_adapter(bank: AdapterBank) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return an adapter of rank 1 that changes nothing, on all modules that the bank changes."""
    return {
        module: (torch.zeros(1, inputs), torch.zeros(outputs, 1)) for module, (inputs, outputs) in _shapes(bank).items()
    }


def probes(bank: AdapterBank) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Return, by the last part of module names, an adapter of rank 1 that changes the modules of that name a lot."""
    found: dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]] = {}
    for module, (inputs, outputs) in sorted(_shapes(bank).items()):
        own = found.setdefault(module.rsplit(".", 1)[-1], {})
        generator = torch.Generator().manual_seed(len(own))
        own[module] = torch.randn(1, inputs, generator=generator), torch.randn(outputs, 1, generator=generator)
    return found


def _shapes(bank: AdapterBank) -> dict[str, tuple[int, int]]:
    return {
        module: (weights.A.shape[1], weights.B.shape[0])
        for adapter in bank.adapters.values()
        for module, weights in adapter.modules.items()
    }
