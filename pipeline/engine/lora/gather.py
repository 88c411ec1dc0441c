"""The gathered form of a batch: each row is multiplied with its own adapters only."""

from collections.abc import Sequence

import torch
from torch.nn.functional import linear

from .extras import Extras
from .forms import Form
from .layout import InputSet, Site
from .panel import Panel

SINGLE = 64  # a combination with this many tokens is multiplied alone: padding others to it would cost more


class Gather(Form):
    """Multiplies each combination of adapters with its own units: batched, combinations of many tokens one by one.

    ``slots`` [units], on the host: slot in the panel of each unit's combination, -1 for the base model alone.
    ``single``: units from which on a combination is multiplied alone.
    """

    def __init__(
        self, panel: Panel, weights: torch.Tensor, extras: Extras | None, slots: torch.Tensor, single: int
    ) -> None:
        super().__init__(panel, weights, extras)
        self._slots, self._single = slots, single
        members = [(slots == slot).nonzero().flatten() for slot in range(panel.slots)]
        self._alone = [(slot, _contiguous(m, weights.device)) for slot, m in enumerate(members) if len(m) >= single]
        small = [m if len(m) < single else m[:0] for m in members]
        length = max(map(len, small))
        order = torch.zeros(panel.slots, length, dtype=torch.long)
        valid = torch.zeros(panel.slots, length, dtype=torch.bool)
        for slot, units in enumerate(small):
            order[slot, : len(units)], valid[slot, : len(units)] = units, True
        self._length = length
        self._in_order = bool(valid.all()) and torch.equal(order.flatten(), torch.arange(len(slots)))
        self._order = order.flatten().to(weights.device)
        self._valid = None if valid.all() else valid.flatten().nonzero().flatten().to(weights.device)
        self._to = self._order if self._valid is None else self._order[self._valid]
        self._small_weights = (weights[self._order] * valid.view(-1, 1).to(weights.device)).view(
            panel.slots, length, 1, 1, weights.shape[1]
        )

    def _inners(self, inputs: InputSet, x: torch.Tensor) -> Sequence[torch.Tensor]:
        width, modules = inputs.kind
        a = self.panel.A[inputs.kind][inputs.index].view(self.panel.slots, -1, width)
        units, ranks = self.weights.shape
        x = x.reshape(units, -1, width)
        inners = []
        for slot, chosen in self._alone:
            weights = self.weights[chosen].view(-1, 1, 1, ranks)
            shaped = linear(x[chosen].reshape(-1, width), a[slot]).view(len(weights), -1, modules, ranks)
            inners.append(self._weighted(shaped, weights).view(-1, modules, ranks))
        if self._length:
            x = (x if self._in_order else x[self._order]).view(self.panel.slots, -1, width)
            shaped = torch.bmm(x, a.transpose(1, 2)).view(self.panel.slots, self._length, -1, modules, ranks)
            inners.append(self._weighted(shaped, self._small_weights).view(self.panel.slots, -1, modules, ranks))
        return inners

    def _outer(self, site: Site, output: torch.Tensor, inner: Sequence[torch.Tensor]) -> None:
        out = site.kind.out
        b = self.panel.B[site.kind][site.index]
        by_unit = output.view(len(self.weights), -1, out)
        for (slot, chosen), own in zip(self._alone, inner, strict=False):
            if isinstance(chosen, slice):
                by_unit[chosen].view(-1, out).addmm_(own[:, site.position], b[slot])
            else:
                delta = own[:, site.position] @ b[slot]
                by_unit.index_add_(0, chosen, delta.view(len(chosen), -1, out))
        if not self._length:
            return
        small = inner[-1][:, :, site.position]
        if self._in_order:
            output.view(self.panel.slots, -1, out).baddbmm_(small, b)
            return
        delta = torch.bmm(small, b).view(len(self._order), -1, out)
        by_unit.index_add_(0, self._to, delta if self._valid is None else delta[self._valid])

    def select(self, units: torch.Tensor) -> Form:
        """Return the form of some of the units."""
        extras = self.extras and self.extras.select(units)
        weights = self.weights[units.to(self.weights.device)]
        return Gather(self.panel, weights, extras, self._slots[units.cpu()], self._single)


def _contiguous(units: torch.Tensor, device: torch.device) -> slice | torch.Tensor:
    """Return ascending indices as a slice if they are contiguous, which gives views instead of copies."""
    first, last = int(units[0]), int(units[-1])
    return slice(first, last + 1) if last - first + 1 == len(units) else units.to(device)
