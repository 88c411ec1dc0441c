"""Buffers of stacked adapters that a batch multiplies with: only what is new in a batch is written."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch

from .layout import Group, OutKind
from .residency import Packed

Base = Mapping[OutKind, Sequence[torch.Tensor]]
"""Weights [out x in] of the modules themselves, in the order of their places."""

_ROUND = 16  # ranks: capacities are multiples of it, so that small changes of a batch fit


@dataclass(frozen=True)
class Place:
    """Where an adapter's ranks lie: those from ``start`` of a slot."""

    slot: int
    start: int
    rank: int


class Panel:
    """For one group: ``slots`` stacks of ``ranks`` ranks each, zero where nothing lies.

    ``A`` by `InputSet.kind`: [sets x slots x modules x ranks x in]. ``B`` by `OutKind`: [modules x slots x ranks x
    out]. The union of a batch's adapters is one slot; for gathered adapters each slot is one combination of them.
    ``joined`` by `OutKind`, for those of ``base``, in a panel of one slot: [modules x out x (in + ranks)], base weights
    and B as [B^T, W] on side 0, [W, B^T] on side 1; B is then a view of it.
    """

    def __init__(
        self,
        group: Group,
        slots: int,
        ranks: int,
        dtype: torch.dtype,
        device: torch.device,
        base: Base = MappingProxyType({}),
    ) -> None:
        self.slots, self.ranks = slots, ranks
        counts: dict[tuple[int, int], int] = {}
        for inputs in group.sets:
            counts[inputs.kind] = counts.get(inputs.kind, 0) + 1
        outs = Counter(kind for kind, _ in group.outs.values())
        self.A = {
            (width, modules): torch.zeros(count, slots, modules, ranks, width, dtype=dtype, device=device)
            for (width, modules), count in counts.items()
        }
        self.B = {
            kind: torch.zeros(count, slots, ranks, kind.out, dtype=dtype, device=device)
            for kind, count in outs.items()
            if kind not in base
        }
        self.joined: dict[OutKind, torch.Tensor] = {}
        for kind, weights in base.items():
            joined = torch.zeros(len(weights), kind.out, kind.width + ranks, dtype=dtype, device=device)
            begin = 0 if kind.side else ranks  # of the base weights
            for place, weight in enumerate(weights):
                joined[place, :, begin : begin + kind.width] = weight
            b = joined[:, :, kind.width :] if kind.side else joined[:, :, :ranks]
            self.joined[kind], self.B[kind] = joined, b.transpose(1, 2).unsqueeze(1)

    def write(self, place: Place, packed: Packed) -> None:
        """Put an adapter at its place."""
        ranks = slice(place.start, place.start + place.rank)
        for kind, a in packed.A.items():
            self.A[kind][:, place.slot, :, ranks] = a
        for out, b in packed.B.items():
            self.B[out][:, place.slot, ranks] = b

    def clear(self, slot: int, start: int = 0) -> None:
        """Zero a slot from a rank on: what lay there may not fit what is there now."""
        for a in self.A.values():
            a[:, slot, :, start:] = 0
        for b in self.B.values():
            b[:, slot, start:] = 0


class UnionPanel:
    """The adapters of the batch side by side in one slot. Those that leave keep their ranks until others need them.

    ``base``: base weights to join them to.
    """

    def __init__(
        self, group: Group, dtype: torch.dtype, device: torch.device, base: Base = MappingProxyType({})
    ) -> None:
        self._group, self._dtype, self._device, self._base = group, dtype, device, base
        self.panel: Panel | None = None
        self.places: dict[str, Place] = {}

    @property
    def joined(self) -> int:
        """Modules whose base weights the panel holds."""
        return sum(map(len, self._base.values()))

    def update(self, adapters: Mapping[str, Packed]) -> Panel:
        """Bring in the adapters of a batch."""
        needed = sum(self._group.ranks[name] for name in adapters)
        if self.panel is None or needed > self.panel.ranks or self.panel.ranks > 2 * needed + _ROUND:
            return self._rebuild(adapters, needed)
        self.places = {name: place for name, place in self.places.items() if name in adapters}
        for name, packed in adapters.items():
            if name in self.places:
                continue
            start = self._gap(self._group.ranks[name])
            if start is None:
                return self._rebuild(adapters, needed)
            self.places[name] = Place(0, start, self._group.ranks[name])
            self.panel.write(self.places[name], packed)
        return self.panel

    def _gap(self, rank: int) -> int | None:
        """First run of ``rank`` free ranks."""
        assert self.panel is not None
        start = 0
        for place in sorted(self.places.values(), key=lambda p: p.start):
            if place.start - start >= rank:
                return start
            start = place.start + place.rank
        return start if self.panel.ranks - start >= rank else None

    def _rebuild(self, adapters: Mapping[str, Packed], needed: int) -> Panel:
        ranks = -(-needed // _ROUND) * _ROUND
        self.panel = Panel(self._group, 1, ranks, self._dtype, self._device, self._base)
        self.places = {}
        start = 0
        for name, packed in adapters.items():
            self.places[name] = Place(0, start, self._group.ranks[name])
            self.panel.write(self.places[name], packed)
            start += self._group.ranks[name]
        return self.panel


class GatherPanel:
    """A slot for each combination of adapters in the batch; equal combinations share it, whatever their weights."""

    def __init__(self, group: Group, dtype: torch.dtype, device: torch.device) -> None:
        self._group, self._dtype, self._device = group, dtype, device
        self.panel: Panel | None = None
        self.slots: dict[Hashable, int] = {}

    def update(self, combinations: Sequence[tuple[str, ...]], adapters: Mapping[str, Packed]) -> Panel:
        """Bring in the combinations of a batch, each of adapters that the group knows."""
        ranks = max(sum(self._group.ranks[name] for name in names) for names in combinations)
        count = len(combinations)
        panel = self.panel
        if panel is None or not count <= panel.slots <= 2 * count + 2 or not ranks <= panel.ranks <= 2 * ranks:
            panel = self.panel = Panel(self._group, count, ranks, self._dtype, self._device)
            self.slots = {}
        kept = set(combinations)
        self.slots = {names: slot for names, slot in self.slots.items() if names in kept}
        free = iter(sorted(set(range(panel.slots)) - set(self.slots.values())))
        for names in combinations:
            if names not in self.slots:
                self.slots[names] = next(free)
                self._write(panel, names, adapters)
        return panel

    def _write(self, panel: Panel, names: tuple[str, ...], adapters: Mapping[str, Packed]) -> None:
        start = 0
        for name in names:
            rank = self._group.ranks[name]
            panel.write(Place(self.slots[names], start, rank), adapters[name])
            start += rank
        panel.clear(self.slots[names], start)
