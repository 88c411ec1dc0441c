"""What adapters add besides B A x: DoRA's stretching of the base output, and the bias of lora_B."""

from collections.abc import Callable, Mapping, Sequence

import torch

from .batch import Assignment
from .layout import Group, Site
from .residency import Packed


class Extras:
    """What adapters add besides B A x: DoRA's ``sum w_i (g_i - 1) (y - bias)``, and `lora_bias`.

    ``weights`` [units x adapters]: mixture weights; ``gains`` and ``shifts`` by module [adapters x out], scales folded
    into the shifts; all fp32.
    """

    def __init__(
        self, weights: torch.Tensor, gains: Mapping[str, torch.Tensor], shifts: Mapping[str, torch.Tensor]
    ) -> None:
        self._weights, self._gains, self._shifts = weights, gains, shifts

    def of(self, site: Site, output: torch.Tensor) -> torch.Tensor:
        """What is to be added to a module's output, of which nothing has been changed yet."""
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
        """The same for some of the units."""
        return Extras(self._weights[units.to(self._weights.device)], self._gains, self._shifts)


def extras_of(group: Group, batch: Assignment, packed: Mapping[str, Packed]) -> Extras | None:
    """The extras of a batch's adapters; None where none of them has any."""
    names = [name for name in packed if name in group.biased or name in group.dora]
    if not names:
        return None
    device = next(iter(packed[names[0]].B.values())).device
    matrix = _mixture_weights(batch, names)

    def stacked(part: Callable[[str, str], torch.Tensor | None], module: str) -> torch.Tensor:
        zero = torch.zeros(group.outs[module][0].out, device=device)
        found = [part(name, module) for name in names]
        return torch.stack([zero if one is None else one for one in found])

    gains, shifts = {}, {}
    for module in group.names:
        if group.dora:
            gains[module] = stacked(lambda name, at: packed[name].gain.get(at), module)
        if group.biased:
            shifts[module] = stacked(
                lambda name, at: packed[name].shift[at] * group.scales[name] if name in group.biased else None, module
            )
    return Extras(matrix.to(device), gains, shifts)


def _mixture_weights(batch: Assignment, names: Sequence[str]) -> torch.Tensor:
    """Mixture weights [units x adapters] of the adapters ``names``."""
    matrix = torch.zeros(len(batch.mixtures), len(names))
    column = {name: number for number, name in enumerate(names)}
    for row, mixture in enumerate(batch.mixtures):
        for name, weight in zip(mixture.adapters, mixture.weights, strict=True):
            if name in column:
                matrix[row, column[name]] = weight
    return matrix[batch.places]
