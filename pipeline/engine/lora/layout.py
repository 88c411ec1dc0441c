"""Group modules that are computed alike: groups share their rank weights, and modules of one input share a GEMM."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from pipeline.adapters import AdapterBank

from .layers import output_scale

# Layers of one parent that transformers calls with the same tensor object. Each call checks this; if it does not hold
# (another model may use these names otherwise), each layer computes its own product.
_SIBLINGS = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"query", "key", "value"}, {"q_lin", "v_lin"})


class OutKind(NamedTuple):
    """Modules whose B share a buffer: their features, and the side of the input for their ranks (see `Panel`)."""

    out: int
    width: int
    side: int


@dataclass(frozen=True)
class InputSet:
    """Modules that read one input, so one GEMM serves them.

    ``kind`` (in, modules): its buffer of A. ``index``: in that buffer.
    """

    names: tuple[str, ...]
    kind: tuple[int, int]
    index: int


@dataclass(frozen=True)
class Site:
    """One adapted module.

    ``position``: among the modules that share its input. ``kind``: its buffer of B. ``index``: in that buffer.
    """

    name: str
    module: nn.Module
    inputs: InputSet
    position: int
    kind: OutKind
    index: int

    @property
    def bias(self) -> torch.Tensor | None:
        """Bias of the module itself."""
        bias: torch.Tensor | None = getattr(self.module, "bias", None)
        return bias


@dataclass(frozen=True)
class Group:
    """Modules that the same adapters change with the same ranks and scales.

    ``ranks``, ``scales``: by adapter. ``sets``: modules by input. ``biased``: adapters with a `lora_bias`. ``dora``:
    DoRA adapters.
    """

    ranks: dict[str, int]
    scales: dict[str, float]
    sets: tuple[InputSet, ...]
    sites: tuple[Site, ...]
    biased: frozenset[str]
    dora: frozenset[str]
    embedding: bool


def group_modules(model: nn.Module, bank: AdapterBank) -> list[Group]:
    """Return the groups of all modules that an adapter of the bank changes."""
    modules = dict(model.named_modules())
    alike: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name in bank.modules:
        module = modules[name]
        members = tuple(
            (adapter, w.rank, w.scale, w.bias is None, w.magnitude is None)
            for adapter in bank.names
            if (w := bank.adapters[adapter].modules.get(name)) is not None
        )
        alike[isinstance(module, nn.Embedding), output_scale(module), members].append(name)
    return [_group(names, modules, bank) for names in alike.values()]


def _group(names: list[str], modules: dict[str, nn.Module], bank: AdapterBank) -> Group:
    module = modules[names[0]]
    first = {a: w for a in bank.names if (w := bank.adapters[a].modules.get(names[0])) is not None}
    shapes = bank.adapters[next(iter(first))].modules
    sizes: dict[tuple[int, ...], int] = defaultdict(int)
    sets, sites = [], []
    for _, siblings in groupby(sorted(names, key=_input_of), _input_of):
        together = tuple(siblings)
        kind = (shapes[together[0]].A.shape[1], len(together))
        inputs = InputSet(together, kind, sizes[kind])
        sets.append(inputs)
        sizes[kind] += 1
        for position, name in enumerate(together):
            out = OutKind(shapes[name].B.shape[0], kind[0], position % 2)
            sites.append(Site(name, modules[name], inputs, position, out, sizes[out]))
            sizes[out] += 1
    return Group(
        ranks={a: w.rank for a, w in first.items()},
        scales={a: w.scale * output_scale(module) for a, w in first.items()},
        sets=tuple(sets),
        sites=tuple(sites),
        biased=frozenset(a for a, w in first.items() if w.bias is not None),
        dora=frozenset(a for a, w in first.items() if w.magnitude is not None),
        embedding=isinstance(module, nn.Embedding),
    )


def _input_of(name: str) -> tuple[str, str]:
    """Return a key that modules of one input share."""
    parent, _, last = name.rpartition(".")
    return parent, next((str(i) for i, s in enumerate(_SIBLINGS) if last in s), last)
