"""Add what adapters change besides B A x: DoRA's scaling of the base output, and the bias of lora_B."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from pipeline.adapters import ModuleWeights

from .batch import Assignment
from .layers import matrix
from .layout import Group, Site
from .residency import Packed


def dora_gain(module: nn.Module, weight: torch.Tensor, weights: ModuleWeights) -> torch.Tensor:
    """Return DoRA's gain m / ||W + s B A||, with norms over the rows of [out x in]; fp32 [out] on the host.

    Source: arXiv 2402.09353, eq. 5. One DoRA adapter alone computes ``g * (W x + s B A x) + bias``. A mixture of
    weights w_i is defined as the mixture of what the adapters add:
    ``W x + bias + sum w_i ((g_i - 1) W x + g_i s_i B_i A_i x)``. That is again a linear layer, of weight
    ``W + sum w_i (g_i (W + s_i B_i A_i) - W)``. PEFT differs: it applies several active DoRA adapters to each other's
    output, so their order matters (`peft.tuners.lora.variants.DoraLinearVariant`).
    """
    assert weights.magnitude is not None
    a, b = weights.A.to(weight.device).float(), weights.B.to(weight.device).float()
    norms: torch.Tensor = torch.linalg.norm(matrix(module, weight).float() + weights.scale * (b @ a), dim=1)
    return weights.magnitude.float() / norms.cpu()


class Extras:
    """DoRA's ``sum w_i (g_i - 1) (y - bias)`` and the ``lora_bias`` of a batch.

    ``weights`` [units x adapters]: mixture weights. ``gains`` and ``shifts`` by module, [adapters x out], with scales
    folded into the shifts. All fp32.
    """

    def __init__(
        self, weights: torch.Tensor, gains: Mapping[str, torch.Tensor], shifts: Mapping[str, torch.Tensor]
    ) -> None:
        self._weights, self._gains, self._shifts = weights, gains, shifts

    def added(self, site: Site, output: torch.Tensor) -> torch.Tensor:
        """Return what is added to a module's ``output``, given the unchanged base output."""
        by_unit = output.view(len(self._weights), -1, site.kind.out)
        added = torch.zeros((), device=output.device)
        if site.name in self._gains:
            bias = site.bias
            own = by_unit.float() if bias is None else by_unit.float() - bias.float()
            added = (self._weights @ self._gains[site.name]).unsqueeze(1) * own
        if site.name in self._shifts:
            added = added + (self._weights @ self._shifts[site.name]).unsqueeze(1)
        return added.expand(by_unit.shape).reshape(output.shape).to(output.dtype)

    def select(self, units: torch.Tensor) -> "Extras":
        """Return the extras of some of the units."""
        return Extras(self._weights[units.to(self._weights.device)], self._gains, self._shifts)


def extras_of(group: Group, batch: Assignment, packed: Mapping[str, Packed]) -> Extras | None:
    """Return the extras of a batch's adapters; None if no adapter has any."""
    names = [name for name in packed if name in group.biased or name in group.dora]
    if not names:
        return None
    device = next(iter(packed[names[0]].B.values())).device

    def stacked(part: Callable[[str, str], torch.Tensor | None], module: str) -> torch.Tensor:
        zero = torch.zeros(group.outs[module][0].out, device=device)
        parts = [part(name, module) for name in names]
        return torch.stack([zero if one is None else one for one in parts])

    gains, shifts = {}, {}
    for module in group.names:
        if group.dora:
            gains[module] = stacked(lambda name, at: packed[name].gain.get(at), module)
        if group.biased:
            shifts[module] = stacked(
                lambda name, at: packed[name].shift[at] * group.scales[name] if name in group.biased else None, module
            )
    return Extras(_mixture_weights(batch, names).to(device), gains, shifts)


def _mixture_weights(batch: Assignment, names: Sequence[str]) -> torch.Tensor:
    """Return the mixture weights [units x adapters] of the adapters ``names``."""
    weights = torch.zeros(len(batch.mixtures), len(names))
    columns = {name: index for index, name in enumerate(names)}
    for row, mixture in enumerate(batch.mixtures):
        for name, weight in zip(mixture.adapters, mixture.weights, strict=True):
            if name in columns:
                weights[row, columns[name]] = weight
    return weights[batch.indices]
