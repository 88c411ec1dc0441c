"""Adapters in the layout of the operator's buffers: on the device up to a limit, the rest in host memory."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from pipeline.adapters import AdapterBank
from pipeline.errors import UserError

from .layout import Group, OutKind


@dataclass(frozen=True)
class Packed:
    """One adapter's weights in one group, in the dtype of the activations.

    ``A`` by `InputSet.kind`: [sets x modules x r x in]. ``B`` by `OutKind`: [modules x r x out], columns multiplied by
    DoRA's gain. ``shift`` (`lora_bias`) and ``gain`` (DoRA's gain minus 1) by module: [out], fp32.
    """

    A: dict[tuple[int, int], torch.Tensor]
    B: dict[OutKind, torch.Tensor]
    shift: dict[str, torch.Tensor]
    gain: dict[str, torch.Tensor]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Packed":
        """Return a copy with ``change`` applied to all tensors."""
        return Packed(
            {k: change(t) for k, t in self.A.items()},
            {k: change(t) for k, t in self.B.items()},
            {k: change(t) for k, t in self.shift.items()},
            {k: change(t) for k, t in self.gain.items()},
        )


class Residency:
    """An LRU cache of packed adapters on the device, which never evicts an adapter of the current batch.

    ``slots``: maximum number of adapters, 0 for no limit. ``gains`` returns DoRA's gain [out] of (adapter, module). On
    CUDA, evicted adapters stay packed in pinned host memory; elsewhere they are packed again from the bank's
    memory-mapped files. ``loads``, ``evictions``: adapters loaded to the device so far, and evicted from it.
    """

    def __init__(
        self,
        bank: AdapterBank,
        groups: list[Group],
        dtype: torch.dtype,
        device: torch.device,
        slots: int,
        gains: Callable[[str, str], torch.Tensor],
    ) -> None:
        self.loads = self.evictions = 0
        self._bank, self._groups, self._gains = bank, groups, gains
        self._dtype, self._device, self._slots = dtype, device, slots
        self._resident: OrderedDict[str, list[Packed | None]] = OrderedDict()
        self._pinned: dict[str, list[Packed | None]] = {}

    def use(self, names: Iterable[str]) -> dict[str, list[Packed | None]]:
        """Return the adapters of a batch on the device, packed per group; None for groups that they do not change."""
        used: dict[str, list[Packed | None]] = {}
        for name in names:
            if name in self._resident:
                self._resident.move_to_end(name)
            else:
                self.loads += 1
                self._evict(used, adding=1)
                self._resident[name] = self._load(name)
            used[name] = self._resident[name]
        self._evict(used, adding=0)
        return used

    def _evict(self, used: Iterable[str], adding: int) -> None:
        if not self._slots:
            return
        for name in list(self._resident):
            if len(self._resident) + adding <= self._slots:
                return
            if name not in used:
                self.evictions += 1
                del self._resident[name]

    def _load(self, name: str) -> list[Packed | None]:
        if self._device.type != "cuda":
            return self._pack(name)
        if name not in self._pinned:
            self._pinned[name] = [p and p.map(torch.Tensor.pin_memory) for p in self._pack(name)]
        return [p and p.map(lambda t: t.to(self._device, non_blocking=True)) for p in self._pinned[name]]

    def _pack(self, name: str) -> list[Packed | None]:
        packed = [self._pack_group(name, group) if name in group.ranks else None for group in self._groups]
        tensors = (t for one in packed if one is not None for t in (*one.A.values(), *one.B.values()))
        if self._dtype is torch.float16 and not all(bool(t.isfinite().all()) for t in tensors):
            raise UserError(f"engine: adapter {name!r} has weights beyond fp16; use model.dtype=bf16 or fp32")
        return packed

    def _pack_group(self, name: str, group: Group) -> Packed:
        modules = self._bank.adapters[name].modules
        a: dict[tuple[int, int], list[torch.Tensor]] = {}
        for inputs in group.sets:
            a.setdefault(inputs.kind, []).append(torch.stack([modules[n].A.to(self._dtype) for n in inputs.names]))
        b: dict[OutKind, list[torch.Tensor]] = {}
        shift, gain = {}, {}
        for site in group.sites:
            weights = modules[site.name]
            columns = weights.B.T
            if name in group.dora:
                dora_gain = self._gains(name, site.name)
                gain[site.name], columns = dora_gain - 1, columns.float() * dora_gain
            if weights.bias is not None:
                shift[site.name] = weights.bias.float()
            b.setdefault(site.kind, []).append(columns.to(self._dtype))
        return Packed(
            {kind: torch.stack(parts) for kind, parts in a.items()},
            {kind: torch.stack(parts) for kind, parts in b.items()},
            shift,
            gain,
        )
