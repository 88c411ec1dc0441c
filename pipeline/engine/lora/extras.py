"""Add what adapters change besides B A x: DoRA's scaling of the base output, and the bias of lora_B."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .batch import Assignment
from .layout import Group, Site
from .residency import Packed


@dataclass(frozen=True)
class Extras:
    """DoRA's ``sum w_i (g_i - 1) (y - bias)`` and the ``lora_bias`` of a batch.

    ``weights`` [units x adapters]: mixture weights. ``gains`` and ``shifts`` by module, [adapters x out], with scales
    folded into the shifts. All fp32.

    One DoRA adapter alone computes ``g * (W x + s B A x) + bias``. A mixture of weights w_i is defined as the mixture
    of what the adapters add: ``W x + bias + sum w_i ((g_i - 1) W x + g_i s_i B_i A_i x)``. That is again a linear
    layer, of weight ``W + sum w_i (g_i (W + s_i B_i A_i) - W)``. PEFT differs: it applies several active DoRA adapters
    to each other's output, so their order matters (`peft.tuners.lora.variants.DoraLinearVariant`).
    """

    weights: torch.Tensor
    gains: Mapping[str, torch.Tensor]
    shifts: Mapping[str, torch.Tensor]

    def added(self, site: Site, output: torch.Tensor) -> torch.Tensor:
        """Return what is added to a module's ``output``, given the unchanged base output."""
        by_unit = output.view(len(self.weights), -1, site.kind.out)
        added = torch.zeros((), device=output.device)
        if site.name in self.gains:
            bias = site.bias
            own = by_unit.float() if bias is None else by_unit.float() - bias.float()
            added = (self.weights @ self.gains[site.name]).unsqueeze(1) * own
        if site.name in self.shifts:
            added = added + (self.weights @ self.shifts[site.name]).unsqueeze(1)
        return added.expand(by_unit.shape).reshape(output.shape).to(output.dtype)

    def select(self, units: torch.Tensor) -> "Extras":
        """Return the extras of some of the units."""
        return Extras(self.weights[units.to(self.weights.device)], self.gains, self.shifts)


def extras_of(group: Group, batch: Assignment, packed: Mapping[str, Packed]) -> Extras | None:
    """Return the extras of a batch's adapters; None if no adapter has any."""
    names = [name for name in packed if name in group.biased or name in group.dora]
    if not names:
        return None
    device = next(iter(packed[names[0]].B.values())).device
    gains, shifts = {}, {}
    for site in group.sites:
        zero = torch.zeros(site.kind.out, device=device)
        if group.dora:
            gains[site.name] = torch.stack([packed[name].gain.get(site.name, zero) for name in names])
        if group.biased:
            shifts[site.name] = torch.stack(
                [packed[name].shift.get(site.name, zero) * group.scales[name] for name in names]
            )
    by_mixture = [dict(zip(mixture.adapters, mixture.weights, strict=True)) for mixture in batch.mixtures]
    weights = torch.tensor([[of.get(name, 0.0) for name in names] for of in by_mixture])
    return Extras(weights[batch.indices].to(device), gains, shifts)
