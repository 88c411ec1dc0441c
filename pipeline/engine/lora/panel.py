"""Buffers of stacked adapters that a batch is multiplied with; only adapters that are new in a batch are written."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType

import torch
from torch import nn

from .layers import plain_weight
from .layout import Group, OutKind, Site
from .residency import Packed

Base = Mapping[OutKind, Sequence[torch.Tensor]]
"""Base weights [out x in] of the modules, in the order of their indices."""

_ROUND = 16  # capacities are multiples of this number of ranks: small changes of a batch then fit
# Maximum weights of a joined module: 2 MiB in bf16. Each call costs a CPU about 20 microseconds (measured; oneDNN, two
# threads), which is negligible for larger modules, whose copies would only take memory.
_MAX_WEIGHTS = 2**20


@dataclass(frozen=True)
class RankSlice:
    """The ranks of one adapter in a panel: ``rank`` ranks of a slot from ``start``."""

    slot: int
    start: int
    rank: int


class Panel:
    """The stacked adapters of one group: ``slots`` stacks of ``ranks`` ranks each; unused ranks are zero.

    ``A`` by `InputSet.kind`: [sets x slots x modules x ranks x in]. ``B`` by `OutKind`: [modules x slots x ranks x
    out]. The union of a batch's adapters takes one slot; gathered adapters take one slot per combination. ``joined`` by
    `OutKind`, for the kinds of ``base``, in a panel of one slot: [modules x out x (in + ranks)] with [B^T, W] on side 0
    and [W, B^T] on side 1; B is then a view of it.
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
            start = 0 if kind.side else ranks  # of the base weights
            for index, weight in enumerate(weights):
                joined[index, :, start : start + kind.width] = weight
            b = joined[:, :, kind.width :] if kind.side else joined[:, :, :ranks]
            self.joined[kind], self.B[kind] = joined, b.transpose(1, 2).unsqueeze(1)

    def write(self, at: RankSlice, packed: Packed) -> None:
        """Write an adapter to its ranks."""
        ranks = slice(at.start, at.start + at.rank)
        for kind, a in packed.A.items():
            self.A[kind][:, at.slot, :, ranks] = a
        for out, b in packed.B.items():
            self.B[out][:, at.slot, ranks] = b

    def clear(self, slot: int, start: int) -> None:
        """Set the ranks of a slot from ``start`` on to zero: they may hold adapters of an earlier batch."""
        for a in self.A.values():
            a[:, slot, :, start:] = 0
        for b in self.B.values():
            b[:, slot, start:] = 0


class UnionPanel:
    """The adapters of a batch side by side in one slot. Adapters that leave keep their ranks until others need them.

    ``base``: base weights to store beside B.
    """

    def __init__(
        self, group: Group, dtype: torch.dtype, device: torch.device, base: Base = MappingProxyType({})
    ) -> None:
        self._group, self._dtype, self._device, self._base = group, dtype, device, base
        self.panel: Panel | None = None
        self.slices: dict[str, RankSlice] = {}

    @property
    def joined(self) -> int:
        """Number of modules whose base weights the panel holds."""
        return sum(map(len, self._base.values()))

    def update(self, adapters: Mapping[str, Packed]) -> Panel:
        """Write the adapters of a batch that the panel does not hold."""
        needed = sum(self._group.ranks[name] for name in adapters)
        if self.panel is None or needed > self.panel.ranks or self.panel.ranks > 2 * needed + _ROUND:
            return self._rebuild(adapters, needed)
        self.slices = {name: held for name, held in self.slices.items() if name in adapters}
        for name, packed in adapters.items():
            if name not in self.slices:
                start = self._find_gap(self._group.ranks[name])
                if start is None:
                    return self._rebuild(adapters, needed)
                self._write(self.panel, name, start, packed)
        return self.panel

    def _find_gap(self, rank: int) -> int | None:
        """Return the start of the first ``rank`` free ranks in a row."""
        assert self.panel is not None
        start = 0
        for held in sorted(self.slices.values(), key=lambda held: held.start):
            if held.start - start >= rank:
                return start
            start = held.start + held.rank
        return start if self.panel.ranks - start >= rank else None

    def _rebuild(self, adapters: Mapping[str, Packed], needed: int) -> Panel:
        ranks = -(-needed // _ROUND) * _ROUND
        self.panel = Panel(self._group, 1, ranks, self._dtype, self._device, self._base)
        self.slices = {}
        start = 0
        for name, packed in adapters.items():
            self._write(self.panel, name, start, packed)
            start += self._group.ranks[name]
        return self.panel

    def _write(self, panel: Panel, name: str, start: int, packed: Packed) -> None:
        self.slices[name] = RankSlice(0, start, self._group.ranks[name])
        panel.write(self.slices[name], packed)


class GatherPanel:
    """One slot for each combination of adapters in a batch. Mixtures that differ only in their weights share a slot."""

    def __init__(self, group: Group, dtype: torch.dtype, device: torch.device) -> None:
        self._group, self._dtype, self._device = group, dtype, device
        self.panel: Panel | None = None
        self.slots: dict[Hashable, int] = {}

    def update(self, combinations: Sequence[tuple[str, ...]], adapters: Mapping[str, Packed]) -> Panel:
        """Write the combinations of a batch that the panel does not hold; all their adapters change the group."""
        ranks = max(sum(self._group.ranks[name] for name in names) for names in combinations)
        count = len(combinations)
        panel = self.panel
        if panel is None or not count <= panel.slots <= 2 * count + 2 or not ranks <= panel.ranks <= 2 * ranks:
            panel = self.panel = Panel(self._group, count, ranks, self._dtype, self._device)
            self.slots = {}
        needed = set(combinations)
        self.slots = {names: slot for names, slot in self.slots.items() if names in needed}
        free = iter(sorted(set(range(panel.slots)) - set(self.slots.values())))
        for names in combinations:
            if names not in self.slots:
                self.slots[names] = next(free)
                self._write(panel, names, adapters)
        return panel

    def starts(self, names: tuple[str, ...]) -> dict[str, int]:
        """Return the first rank of each adapter of a combination in its slot."""
        ends = accumulate(self._group.ranks[name] for name in names)
        return {name: end - self._group.ranks[name] for name, end in zip(names, ends, strict=True)}

    def _write(self, panel: Panel, names: tuple[str, ...], adapters: Mapping[str, Packed]) -> None:
        slot = self.slots[names]
        for name, start in self.starts(names).items():
            panel.write(RankSlice(slot, start, self._group.ranks[name]), adapters[name])
        panel.clear(slot, sum(self._group.ranks[name] for name in names))


def joinable(sites: Sequence[Site], dtype: torch.dtype, device: torch.device) -> Base:
    """Return the base weights of the kinds of modules that can be joined, always with all modules of the same input.

    On a GPU nothing is joined: recorded steps (`engine/graphs`) have no cost per call.
    """
    by_kind: dict[OutKind, list[torch.Tensor]] = {}
    apart: set[OutKind] = set()
    for site in sorted(sites, key=lambda site: site.index):
        weight = _small_plain_weight(site.module, dtype) if device.type == "cpu" else None
        if weight is None:
            apart.add(site.kind)
        else:
            by_kind.setdefault(site.kind, []).append(weight)
    together: dict[int, set[OutKind]] = {}
    for site in sites:
        together.setdefault(id(site.inputs), set()).add(site.kind)
    while more := {kind for kinds in together.values() if kinds & apart for kind in kinds} - apart:
        apart |= more
    return {kind: weights for kind, weights in by_kind.items() if kind not in apart}


def _small_plain_weight(module: nn.Module, dtype: torch.dtype) -> torch.Tensor | None:
    weight = plain_weight(module) if type(module) is nn.Linear else None
    return weight if weight is not None and weight.dtype is dtype and weight.numel() <= _MAX_WEIGHTS else None
