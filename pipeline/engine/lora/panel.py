"""Buffers of stacked adapters that a batch is multiplied with; only adapters that are new in a batch are written."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import nn

from .layers import plain_weight
from .layout import Group, InputSet, OutKind, Site
from .residency import Packed

Base = Mapping[OutKind, Sequence[torch.Tensor]]
"""Base weights [out x in] of the modules, in the order of their indices."""

_ROUND = 16  # capacities are multiples of this number of ranks: small changes of a batch then fit
# Maximum weights of a joined module: 2 MiB in bf16. Each call costs a CPU about 20 microseconds (measured; oneDNN, two
# threads), which is negligible for larger modules, whose copies would only take memory. On a GPU nothing is joined:
# recorded steps (`engine/graphs`) have no cost per call.
_MAX_WEIGHTS = 2**20


class Panel:
    """The stacked adapters of one group: ``slots`` stacks of ``ranks`` ranks each; unused ranks are zero.

    ``A`` by `InputSet.kind`: [sets x slots x modules x ranks x in]. ``B`` by `OutKind`: [modules x slots x ranks x
    out]. The union of a batch's adapters takes one slot; gathered adapters take one slot per combination. ``joined`` by
    `OutKind`, for the kinds of ``base``, in a panel of one slot: [modules x out x (in + ranks)] with [B^T, W] on side 0
    and [W, B^T] on side 1; B is then a view of it.
    """

    def __init__(
        self, group: Group, slots: int, ranks: int, dtype: torch.dtype, device: torch.device, base: Base | None = None
    ) -> None:
        self.group, self.slots, self.ranks, self.dtype, self.device = group, slots, ranks, dtype, device
        self.A = {
            (width, modules): torch.zeros(count, slots, modules, ranks, width, dtype=dtype, device=device)
            for (width, modules), count in Counter(inputs.kind for inputs in group.sets).items()
        }
        self.B = {
            kind: torch.zeros(count, slots, ranks, kind.out, dtype=dtype, device=device)
            for kind, count in Counter(site.kind for site in group.sites).items()
            if not base or kind not in base
        }
        self.joined: dict[OutKind, torch.Tensor] = {}
        for kind, weights in (base or {}).items():
            joined = torch.zeros(len(weights), kind.out, kind.width + ranks, dtype=dtype, device=device)
            start = 0 if kind.side else ranks  # of the base weights
            for index, weight in enumerate(weights):
                joined[index, :, start : start + kind.width] = weight
            b = joined[:, :, kind.width :] if kind.side else joined[:, :, :ranks]
            self.joined[kind], self.B[kind] = joined, b.transpose(1, 2).unsqueeze(1)

    def write(self, slot: int, start: int, packed: Packed) -> None:
        """Write an adapter to the ranks of a slot from ``start`` on."""
        for kind, a in packed.A.items():
            self.A[kind][:, slot, :, start : start + a.shape[2]] = a
        for out, b in packed.B.items():
            self.B[out][:, slot, start : start + b.shape[1]] = b

    def clear(self, slot: int, start: int) -> None:
        """Set the ranks of a slot from ``start`` on to zero: they may hold adapters of an earlier batch."""
        for a in self.A.values():
            a[:, slot, :, start:] = 0
        for b in self.B.values():
            b[:, slot, start:] = 0


class UnionPanel:
    """The adapters of a batch side by side in one slot. Adapters that leave keep their ranks until others need them.

    ``starts``: the first rank of each adapter. ``joined``: number of modules whose base weights the panel holds too.
    """

    def __init__(self, group: Group, dtype: torch.dtype, device: torch.device) -> None:
        self._group, self._dtype, self._device = group, dtype, device
        self._base = _joinable(group.sites, dtype) if device.type == "cpu" else {}
        self.joined = sum(map(len, self._base.values()))
        self.panel: Panel | None = None
        self.starts: dict[str, int] = {}

    def update(self, adapters: Mapping[str, Packed]) -> Panel:
        """Write the adapters of a batch that the panel does not hold."""
        needed = sum(self._group.ranks[name] for name in adapters)
        if self.panel is None or needed > self.panel.ranks or self.panel.ranks > 2 * needed + _ROUND:
            ranks = -(-needed // _ROUND) * _ROUND
            self.panel = Panel(self._group, 1, ranks, self._dtype, self._device, self._base)
            self.starts = {}
        self.starts = {name: start for name, start in self.starts.items() if name in adapters}
        for name, packed in adapters.items():
            if name not in self.starts:
                start = self._find_gap(self.panel, self._group.ranks[name])
                if start is None:  # the free ranks are scattered
                    self.panel = None
                    return self.update(adapters)
                self.starts[name] = start
                self.panel.write(0, start, packed)
        return self.panel

    def _find_gap(self, panel: Panel, rank: int) -> int | None:
        """Return the start of the first ``rank`` free ranks in a row."""
        end = 0
        for name, start in sorted(self.starts.items(), key=lambda item: item[1]):
            if start - end >= rank:
                return end
            end = start + self._group.ranks[name]
        return end if panel.ranks - end >= rank else None


class GatherPanel:
    """One slot for each combination of adapters in a batch. Mixtures that differ only in their weights share a slot."""

    def __init__(self, group: Group, dtype: torch.dtype, device: torch.device) -> None:
        self._group, self._dtype, self._device = group, dtype, device
        self.panel: Panel | None = None
        self.slots: dict[tuple[str, ...], int] = {}

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
                slot = self.slots[names] = next(free)
                for name, start in self.starts(names).items():
                    panel.write(slot, start, adapters[name])
                panel.clear(slot, sum(self._group.ranks[name] for name in names))
        return panel

    def starts(self, names: tuple[str, ...]) -> dict[str, int]:
        """Return the first rank of each adapter of a combination in its slot."""
        return dict(zip(names, accumulate((self._group.ranks[name] for name in names), initial=0), strict=False))


def _joinable(sites: Sequence[Site], dtype: torch.dtype) -> Base:
    """Return the base weights of the kinds of modules that can be joined, always with all modules of the same input."""
    by_kind: dict[OutKind, list[torch.Tensor]] = {}
    apart: set[OutKind] = set()
    for site in sorted(sites, key=lambda site: site.index):
        weight = plain_weight(site.module) if type(site.module) is nn.Linear else None
        if weight is None or weight.dtype is not dtype or weight.numel() > _MAX_WEIGHTS:
            apart.add(site.kind)
        else:
            by_kind.setdefault(site.kind, []).append(weight)
    together: dict[InputSet, set[OutKind]] = {}
    for site in sites:
        together.setdefault(site.inputs, set()).add(site.kind)
    while more := {kind for kinds in together.values() if kinds & apart for kind in kinds} - apart:
        apart |= more
    return {kind: weights for kind, weights in by_kind.items() if kind not in apart}
