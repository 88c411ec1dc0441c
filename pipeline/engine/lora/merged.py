"""Merge one mixture into the base weights, and restore them bit for bit from copies."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from pipeline.adapters import AdapterBank, ModuleWeights
from pipeline.errors import UserError
from pipeline.records import Mixture

from .layers import matrix, plain_weight


class GoldenWeights:
    """The base weights of adapted modules: the parameters themselves, or host copies while a mixture is merged.

    Merged weights are ``round(W + sum w_i s_i B_i A_i)``, summed in fp32 and rounded once to the parameter's dtype. In
    bf16 they differ from the unmerged operator, which rounds ``W x`` and the update separately: merging loses an update
    below 1/256 of a weight. (PEFT rounds each adapter's update and each sum.) Restoring copies the golden weights back;
    PEFT's `unmerge` subtracts, which changes bf16 weights.
    """

    def __init__(self, model: nn.Module, bank: AdapterBank) -> None:
        self._modules: dict[str, Any] = {n: module for n, module in model.named_modules() if n in bank.modules}
        self._bank = bank
        self._golden: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._gains: dict[tuple[str, str], torch.Tensor] = {}
        self.mixture: Mixture | None = None
        # Addresses of weights, each counted once for every layer that has it: tied heads share theirs.
        owners = Counter(p.data_ptr() for layer in model.modules() for p in layer.parameters(recurse=False))
        self._reasons = {name: reason for name in bank.modules if (reason := self._reason(name, owners))}

    def can_merge(self, mixture: Mixture) -> bool:
        """Return whether every module that the mixture changes has its own weights, which can be overwritten."""
        return self._reasons.keys().isdisjoint(self._changed(mixture))

    def check(self) -> None:
        """Raise `UserError` for the first module of the bank whose weights cannot be merged."""
        for name, reason in sorted(self._reasons.items()):
            raise UserError(f"config: engine.lora.mode=merged cannot merge {name}, which {reason}; use auto")

    def gain(self, adapter: str, module: str) -> torch.Tensor:
        """Return DoRA's gain m / ||W + s B A||, with norms over the rows of [out x in]; fp32 [out] on the host.

        W is the base weight. Computed once. Source: arXiv 2402.09353, eq. 5.
        """
        if (adapter, module) not in self._gains:
            layer, part = self._modules[module], self._bank.adapters[adapter].modules[module]
            weight = plain_weight(layer)
            if self.mixture is not None and module in self._golden:
                weight = self._golden[module][0]
            assert weight is not None, "check_layers refuses quantized layers"
            assert part.magnitude is not None
            a, b = part.A.to(weight.device).float(), part.B.to(weight.device).float()
            norms = torch.linalg.norm(matrix(layer, weight).float() + part.scale * (b @ a), dim=1)
            self._gains[adapter, module] = part.magnitude.float() / norms.cpu()
        return self._gains[adapter, module]

    def merge(self, mixture: Mixture) -> None:
        """Overwrite the current weights with the merged weights of a mixture."""
        if mixture == self.mixture:
            return
        changed = set(self._changed(mixture))
        if self.mixture is not None:
            self._restore(set(self._changed(self.mixture)) - changed)
        for name in sorted(changed):
            self._merge_module(name, mixture)
        self.mixture = mixture

    def restore(self) -> None:
        """Restore the base weights, bit for bit."""
        if self.mixture is not None:
            self._restore(self._changed(self.mixture))
            self.mixture = None

    def _changed(self, mixture: Mixture) -> list[str]:
        return [name for adapter in mixture.adapters for name in self._bank.adapters[adapter].modules]

    def _merge_module(self, name: str, mixture: Mixture) -> None:
        module = self._modules[name]
        if name not in self._golden:
            self._golden[name] = _host_copy(module.weight), None if module.bias is None else _host_copy(module.bias)
        weight, bias = self._golden[name]
        base = matrix(module, weight.to(module.weight.device)).float()
        update, shift = torch.zeros_like(base), torch.zeros(base.shape[0], device=base.device)
        for adapter, share in zip(mixture.adapters, mixture.weights, strict=True):
            part = self._bank.adapters[adapter].modules.get(name)
            if part is not None:
                update += share * self._update(base, adapter, name, part)
                if part.bias is not None:
                    shift += share * part.scale * part.bias.to(base.device).float()
        matrix(module, module.weight.data).copy_(base + update)
        if bias is not None:
            module.bias.data.copy_(bias.to(base.device).float() + shift)

    def _update(self, base: torch.Tensor, adapter: str, name: str, part: ModuleWeights) -> torch.Tensor:
        a, b = part.A.to(base.device).float(), part.B.to(base.device).float()
        update = part.scale * (b @ a)
        if part.magnitude is None:
            return update
        return self.gain(adapter, name).to(base.device).unsqueeze(1) * (base + update) - base

    def _restore(self, names: Iterable[str]) -> None:
        for name in names:
            weight, bias = self._golden[name]
            self._modules[name].weight.data.copy_(weight)
            if bias is not None:
                self._modules[name].bias.data.copy_(bias)

    def _reason(self, name: str, owners: Counter[int]) -> str | None:
        module = self._modules[name]
        if isinstance(module, nn.Embedding):
            return "is an embedding"
        weight = plain_weight(module)
        if weight is None:
            return "is quantised"
        if owners[weight.data_ptr()] > 1:
            return "shares its weight with another layer"
        biased = any(name in a.modules and a.modules[name].bias is not None for a in self._bank.adapters.values())
        return "has no bias to merge lora_bias into" if biased and module.bias is None else None


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to host memory, pinned if the tensor is on a GPU."""
    copied = tensor.detach().to("cpu", copy=True)
    return copied.pin_memory() if tensor.is_cuda else copied
