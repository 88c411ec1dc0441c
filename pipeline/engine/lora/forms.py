"""The two unmerged forms of the operator: one stack for all rows, or each row's own adapters gathered."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn.functional import linear

from .batch import Assignment
from .extras import Extras
from .layout import Group, InputSet, Site
from .panel import Panel

SINGLE = 64  # tokens of one combination from which on it is multiplied alone: padded to it, others would waste more


class Form:
    """What is added to the modules of one group while a batch runs.

    Weights ``w`` [units x ranks] hold mixture weight times the adapter's scale, in fp32 or as `narrowed` leaves them.
    """

    def __init__(self, group: Group, panel: Panel, weights: torch.Tensor, extras: Extras | None) -> None:
        self.group, self.panel, self.weights, self.extras = group, panel, weights, extras
        self.units = len(weights)
        self._dtype = next(iter(panel.A.values())).dtype
        self._last: tuple[torch.Tensor, InputSet] | None = None
        self._inner: Sequence[torch.Tensor] = ()

    def output(self, site: Site, x: torch.Tensor, base: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """A module's output with the group's adapters; ``x`` [... x in] or token ids, units in order.

        ``base``: the module alone.
        """
        given = base(x)
        output = given
        if output.dtype is not self._dtype or not output.is_contiguous():
            output = output.to(self._dtype, memory_format=torch.contiguous_format)
        extra = None if self.extras is None else self.extras.of(site, output)
        self._outer(site, output, self._inner_of(site, x))
        if extra is not None:
            output.add_(extra)
        return output if output.dtype is given.dtype else output.to(given.dtype)

    def _inner_of(self, site: Site, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """What x becomes by A and w. Modules that share an input share it.

        Compared by identity: siblings of some other model may be called on tensors of their own.
        """
        if self._last is None or self._last[0] is not x or self._last[1] is not site.inputs:
            as_ids = self.group.embedding or x.dtype is self._dtype
            self._inner = self._inners(site.inputs, x if as_ids else x.to(self._dtype))
            self._last = (x, site.inputs)
        return self._inner

    def _inners(self, inputs: InputSet, x: torch.Tensor) -> Sequence[torch.Tensor]:
        raise NotImplementedError

    def _outer(self, site: Site, output: torch.Tensor, inner: Sequence[torch.Tensor]) -> None:
        raise NotImplementedError

    def select(self, units: torch.Tensor) -> "Form":
        """The same for some of the units."""
        raise NotImplementedError

    def _weighted(self, inner: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """x A^T times w. In fp16 ranks of other units' adapters may overflow, and infinity times 0 is no number."""
        if self._dtype is torch.float16:
            inner = torch.where(weights != 0, inner, 0)
        if inner.dtype is weights.dtype:
            return inner.mul_(weights)
        return (inner * weights).to(self._dtype)


class Union(Form):
    """``((x A^T) * w) B^T`` with all adapters of the batch in A and B, w zero for those of other units.

    Where the panel holds the base weights W beside B, module and adapters are one product,
    ``[x, (x A^T) * w] [W, B]^T``, summed in fp32 and rounded once.
    """

    def __init__(self, group: Group, panel: Panel, weights: torch.Tensor, extras: Extras | None) -> None:
        super().__init__(group, panel, weights, extras)
        self._shaped, self._flat = weights.view(len(weights), 1, 1, -1), weights.unsqueeze(1)
        # Views are made once: a decode step of a small model waits for Python as long as for its small products.
        self._a: dict[tuple[tuple[int, int], int], torch.Tensor] = {}
        self._b: dict[str, torch.Tensor] = {}
        self._joined: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._beside: list[torch.Tensor] = []
        self._beside_of: Sequence[torch.Tensor] = ()

    def output(self, site: Site, x: torch.Tensor, base: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """As `Form.output`."""
        found = self._joined.get(site.name)
        if found is None:
            if self.extras is not None or site.kind not in self.panel.joined:
                return super().output(site, x, base)
            found = self._joined[site.name] = self.panel.joined[site.kind][site.place], site.bias
        inner = self._inner_of(site, x)
        if inner is not self._beside_of:
            self._beside, self._beside_of = self._both(x.reshape(-1, site.kind.width), inner), inner
        output = linear(self._beside[site.number], *found)
        return output.unsqueeze(0) if x.ndim == 3 and len(x) == 1 else output.view(*x.shape[:-1], -1)

    def _both(self, x: torch.Tensor, inner: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The input [tokens x in] with each module's ranks beside it, before it on side 0 and after it on side 1.

        Two modules share a copy of the input.
        """
        found: list[torch.Tensor] = []
        width = x.shape[1] + self.panel.ranks
        for first in range(0, len(inner), 2):
            row = torch.cat((inner[first], x, *inner[first + 1 : first + 2]), 1)
            found += [row[:, :width], row[:, self.panel.ranks :]]
        return found

    def _inners(self, inputs: InputSet, x: torch.Tensor) -> Sequence[torch.Tensor]:
        width, modules = inputs.kind
        a = self._a.get((inputs.kind, inputs.place))
        if a is None:
            a = self._a[inputs.kind, inputs.place] = self.panel.A[inputs.kind][inputs.place, 0].view(-1, width)
        inner = a.index_select(1, x.flatten()).T if self.group.embedding else linear(x.reshape(-1, width), a)
        units, ranks = self.weights.shape
        if len(inner) == units:
            return self._weighted(inner.view(units, modules, ranks), self._flat).unbind(1)
        weighted = self._weighted(inner.reshape(units, -1, modules, ranks), self._shaped)
        return weighted.view(-1, modules, ranks).unbind(1)

    def _outer(self, site: Site, output: torch.Tensor, inner: Sequence[torch.Tensor]) -> None:
        b = self._b.get(site.name)
        if b is None:
            b = self._b[site.name] = self.panel.B[site.kind][site.place, 0]
        output.view(-1, site.kind.out).addmm_(inner[site.number], b)

    def select(self, units: torch.Tensor) -> Form:
        """The same for some of the units."""
        weights = self.weights[units.to(self.weights.device)]
        return Union(self.group, self.panel, weights, self.extras and self.extras.select(units))


class Gather(Form):
    """Each combination of adapters multiplied with its own units only: batched, many-token ones one by one.

    ``slots`` [units], on the host: where in the panel each unit's combination lies; -1: the base model alone.
    """

    def __init__(
        self,
        group: Group,
        panel: Panel,
        weights: torch.Tensor,
        extras: Extras | None,
        slots: torch.Tensor,
        single: int,
    ) -> None:
        super().__init__(group, panel, weights, extras)
        self._slots, self._single = slots, single
        device = weights.device
        members = [(slots == slot).nonzero().flatten() for slot in range(panel.slots)]
        self._alone = [(slot, _contiguous(m, device)) for slot, m in enumerate(members) if len(m) >= single]
        small = [m if len(m) < single else m[:0] for m in members]
        length = max(map(len, small))
        order = torch.zeros(panel.slots, length, dtype=torch.long)
        valid = torch.zeros(panel.slots, length, dtype=torch.bool)
        for slot, units in enumerate(small):
            order[slot, : len(units)], valid[slot, : len(units)] = units, True
        self._length = length
        self._in_order = bool(valid.all()) and torch.equal(order.flatten(), torch.arange(len(slots)))
        self._order = order.flatten().to(device)
        self._valid = None if valid.all() else valid.flatten().nonzero().flatten().to(device)
        self._to = self._order if self._valid is None else self._order[self._valid]
        self._small_weights = (weights[self._order] * valid.view(-1, 1).to(device)).view(
            panel.slots, length, 1, 1, weights.shape[1]
        )

    def _inners(self, inputs: InputSet, x: torch.Tensor) -> Sequence[torch.Tensor]:
        width, modules = inputs.kind
        a = self.panel.A[inputs.kind][inputs.place].view(self.panel.slots, -1, width)
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
        b = self.panel.B[site.kind][site.place]
        by_unit = output.view(len(self.weights), -1, out)
        for (slot, chosen), own in zip(self._alone, inner, strict=False):
            if isinstance(chosen, slice):
                by_unit[chosen].view(-1, out).addmm_(own[:, site.number], b[slot])
            else:
                delta = own[:, site.number] @ b[slot]
                by_unit.index_add_(0, chosen, delta.view(len(chosen), -1, out))
        if not self._length:
            return
        small = inner[-1][:, :, site.number]
        if self._in_order:
            output.view(self.panel.slots, -1, out).baddbmm_(small, b)
            return
        delta = torch.bmm(small, b).view(len(self._order), -1, out)
        by_unit.index_add_(0, self._to, delta if self._valid is None else delta[self._valid])

    def select(self, units: torch.Tensor) -> Form:
        """The same for some of the units."""
        extras = self.extras and self.extras.select(units)
        weights = self.weights[units.to(self.weights.device)]
        return Gather(self.group, self.panel, weights, extras, self._slots[units.cpu()], self._single)


def narrowed(weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rank weights in the type of the activations where that changes none of them, as with weights in sixteenths.

    Products are then the same to the bit and cost one kernel instead of two. Others stay fp32 until they meet the
    activations: rounded to bf16 alone they would lose 8 bits.
    """
    narrow = weights.to(dtype)
    return narrow if torch.equal(narrow.float(), weights) else weights


def _contiguous(units: torch.Tensor, device: torch.device) -> slice | torch.Tensor:
    """Rising numbers as a slice where none is left out: a view in place of a copy."""
    first, last = int(units[0]), int(units[-1])
    return slice(first, last + 1) if last - first + 1 == len(units) else units.to(device)


def rank_weights(group: Group, batch: Assignment, ranks: int, starts: Sequence[Mapping[str, int]]) -> torch.Tensor:
    """Weights [units x ranks], on the host; ``starts``: for each mixture, where its adapters' ranks begin."""
    matrix = torch.zeros(len(batch.mixtures), ranks)
    for row, (mixture, start) in enumerate(zip(batch.mixtures, starts, strict=True)):
        for name, weight in zip(mixture.adapters, mixture.weights, strict=True):
            if name in start:
                matrix[row, start[name] : start[name] + group.ranks[name]] = weight * group.scales[name]
    return matrix[batch.places]
