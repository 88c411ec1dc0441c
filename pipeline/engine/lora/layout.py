"""Which modules are computed alike: groups that share their rank weights, inputs that share a GEMM."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import torch
from torch import nn

from pipeline.adapters import AdapterBank

from .layers import output_scale

# Layers of one parent that transformers calls on one and the same tensor. That it is the same is checked at each call;
# where it is not (another model's meaning of these names), each layer computes its own share.
_SIBLINGS = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"query", "key", "value"}, {"q_lin", "v_lin"})


class OutKind(NamedTuple):
    """Modules whose B share a buffer: their features, and on which side of the input their ranks stand (`joined`)."""

    out: int
    width: int
    side: int


@dataclass(frozen=True)
class InputSet:
    """Modules that read one input, so that one GEMM serves them. ``kind`` (in, modules) and ``place``: its buffer."""

    names: tuple[str, ...]
    kind: tuple[int, int]
    place: int


@dataclass(frozen=True)
class Site:
    """One adapted module: its input, its number among those that share it, its buffer of B and the place there."""

    name: str
    module: nn.Module
    inputs: InputSet
    number: int
    kind: OutKind
    place: int

    @property
    def bias(self) -> torch.Tensor | None:
        """The module's own bias."""
        bias: torch.Tensor | None = getattr(self.module, "bias", None)
        return bias


@dataclass(frozen=True)
class Group:
    """Modules that the same adapters change with the same ranks and scales.

    ``ranks`` and ``scales`` by adapter. ``sets`` of its modules by input; ``outs``: (kind, place in the buffer of that
    kind) by module. ``biased``, ``dora``: adapters with a `lora_bias`, or of DoRA.
    """

    ranks: dict[str, int]
    scales: dict[str, float]
    sets: tuple[InputSet, ...]
    outs: dict[str, tuple[OutKind, int]]
    biased: frozenset[str]
    dora: frozenset[str]
    embedding: bool

    @property
    def names(self) -> list[str]:
        """Names of its modules."""
        return list(self.outs)


def group_modules(model: nn.Module, bank: AdapterBank) -> list[Group]:
    """The groups of all modules that some adapter of the bank changes."""
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
    return [_group(names, modules[names[0]], bank) for names in alike.values()]


def _group(names: list[str], module: nn.Module, bank: AdapterBank) -> Group:
    first = {a: w for a in bank.names if (w := bank.adapters[a].modules.get(names[0])) is not None}
    shapes = {n: next(a.modules[n] for a in bank.adapters.values() if n in a.modules) for n in names}
    sizes: dict[tuple[int, ...], int] = defaultdict(int)
    sets, outs = [], {}
    for siblings in _by_input(names):
        kind = (shapes[siblings[0]].A.shape[1], len(siblings))
        sets.append(InputSet(siblings, kind, sizes[kind]))
        sizes[kind] += 1
        for number, name in enumerate(siblings):
            out = OutKind(shapes[name].B.shape[0], kind[0], number % 2)
            outs[name] = (out, sizes[out])
            sizes[out] += 1
    return Group(
        ranks={a: w.rank for a, w in first.items()},
        scales={a: w.scale * output_scale(module) for a, w in first.items()},
        sets=tuple(sets),
        outs=outs,
        biased=frozenset(a for a, w in first.items() if w.bias is not None),
        dora=frozenset(a for a, w in first.items() if w.magnitude is not None),
        embedding=isinstance(module, nn.Embedding),
    )


def _by_input(names: list[str]) -> Iterator[tuple[str, ...]]:
    def key(name: str) -> tuple[str, int | str]:
        parent, _, last = name.rpartition(".")
        return parent, next((str(i) for i, s in enumerate(_SIBLINGS) if last in s), last)

    for _, siblings in groupby(sorted(names, key=key), key):
        yield tuple(siblings)


def sites(group: Group, modules: dict[str, nn.Module]) -> list[Site]:
    """The modules of a group, for their wrappers."""
    return [
        Site(name, modules[name], inputs, number, *group.outs[name])
        for inputs in group.sets
        for number, name in enumerate(inputs.names)
    ]
