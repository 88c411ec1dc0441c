"""The fused operator: rows with different mixtures share a batch and two GEMMs a module."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..adapters import AdapterBank, BaseShapes, StackedModule
from ..errors import UserError
from ..records import Mixture

Spread = Callable[[torch.Tensor], torch.Tensor]
"""From rank weights of mixtures [mixtures x R] to those of rows and tokens [rows x (1 or tokens) x R]."""


def base_shapes(model: nn.Module) -> BaseShapes:
    """(in, out) features of every layer of a model that the fused operator can sit on."""
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (module.nx, module.nf)
    return shapes


class FusedLora:
    """Adds ``((x A^T) * w) B^T`` to the output of every module that the bank's adapters change.

    A [R x in] and B [out x R] stack the adapters that the batch uses, and ``w`` [rows x 1 x R] holds each row's mixture
    weight times the adapter's scale, zero for adapters of other rows; for tokens of many rows laid end to end, ``w`` is
    [1 x tokens x R]. The base weights are never touched.
    """

    def __init__(self, model: nn.Module, bank: AdapterBank) -> None:
        bank.check_base(base_shapes(model), getattr(model.config, "name_or_path", "") or type(model).__name__)
        self.bank = bank
        parameter = next(model.parameters())
        self._dtype, self._device = parameter.dtype, str(parameter.device)
        self._stacked: list[str] = []
        self._stacks: dict[str, StackedModule] = {}
        self._weights: dict[str, torch.Tensor] = {}
        modules = dict(model.named_modules())
        self._hooks = [modules[name].register_forward_hook(self._hook(name)) for name in bank.modules]

    def set_mixtures(self, mixtures: Sequence[Mixture]) -> None:
        """Mixtures of the rows of the next forward passes, in order: one for all tokens of a row."""
        self._set(mixtures, lambda weights: weights.unsqueeze(1))

    def set_tokens(self, mixtures: Sequence[Mixture], places: torch.Tensor) -> None:
        """Mixtures of packed tokens [1 x tokens] of the next forward passes: ``places`` [tokens] in ``mixtures``."""
        self._set(mixtures, lambda weights: weights[places].unsqueeze(0))

    def _set(self, mixtures: Sequence[Mixture], spread: Spread) -> None:
        used = {name for mixture in mixtures for name in mixture.adapters}
        if not used <= set(self._stacked):
            self._stack(sorted(used))
        slots = {name: slot for slot, name in enumerate(self._stacked)}
        matrix = torch.zeros(len(mixtures), len(slots))
        for row, mixture in enumerate(mixtures):
            for name, weight in zip(mixture.adapters, mixture.weights, strict=True):
                matrix[row, slots[name]] = weight
        self._weights = self._rank_weights(matrix.to(self._device), spread) if used else {}

    def detach(self) -> None:
        """Remove the hooks: the model is as it was."""
        for hook in self._hooks:
            hook.remove()

    def _stack(self, names: list[str]) -> None:
        unknown = [name for name in names if name not in self.bank.adapters]
        if unknown:
            raise UserError(f"engine: no adapter {', '.join(unknown)} in the bank {self.bank.folder}")
        self._stacked = names
        self._stacks = self.bank.stacked(names, self._dtype, self._device)

    def _rank_weights(self, matrix: torch.Tensor, spread: Spread) -> dict[str, torch.Tensor]:
        """``w`` for each module, from the weights of mixtures [mixtures x adapters] spread over rows and tokens.

        Modules with the same ranks and scales share one tensor.
        """
        shared: dict[tuple[Any, ...], torch.Tensor] = {}
        weights = {}
        for name, stack in self._stacks.items():
            layout = stack.layout
            if layout not in shared:
                shared[layout] = spread(matrix[:, stack.slot] * stack.scale)
            weights[name] = shared[layout]
        return weights

    def _hook(self, name: str) -> Any:
        def add_mixture(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            weights = self._weights.get(name)
            if weights is None:
                return output
            stack = self._stacks[name]
            inner = args[0] @ stack.A.T
            # Weights stay fp32 until they meet the activations: rounded to bf16 alone they would lose 8 bits.
            return output + (inner * weights).to(inner.dtype) @ stack.B.T

        return add_mixture
