"""What each form of a batch costs, in microseconds: enough to pick one, not to predict a step."""

from collections.abc import Sequence
from dataclasses import dataclass

from .layout import Group


@dataclass(frozen=True)
class Costs:
    """Of one device. ``call``: a GEMM however small. ``matrix``: one more matrix of a batched GEMM. ``copy``: a small
    indexed copy. ``macs``: multiplications in a microsecond; ``bytes`` and ``stream``: memory traffic in one, of stacks
    within a step and of whole weights.
    """

    call: float
    matrix: float
    copy: float
    macs: float
    bytes: float
    stream: float


# One thread of an AMD EPYC with AVX-512 (bf16, fp32; [8 to 32 x 576] by [64 to 800 x 576]); CUDA from its data sheets.
# More threads divide both forms alike. ``bytes`` on a CPU is what a decode step reads of stacks that the layers before
# have put out of the caches, half of what a product in a loop of its own reads. Constants, not a measurement at start:
# the form decides how sums are rounded, so it must not depend on how busy a machine is.
CPU_HALF = Costs(call=18, matrix=0.8, copy=4, macs=80e3, bytes=7e3, stream=15e3)
CPU_FULL = Costs(call=3, matrix=0.3, copy=4, macs=36e3, bytes=7e3, stream=15e3)
CUDA = Costs(call=6, matrix=0.02, copy=5, macs=200e6, bytes=3e6, stream=3e6)


@dataclass(frozen=True)
class Load:
    """What a batch asks of one group: ``tokens`` by combination of adapters (base-only ones left out), and their total.

    ``ranks``: of the union. ``widest``: of the largest combination. ``in_order``: every row is one combination's alone.
    """

    counts: Sequence[int]
    total: int
    ranks: int
    widest: int
    in_order: bool


def union_cost(load: Load, group: Group, costs: Costs, itemsize: int, joined: int = 0) -> float:
    """Two GEMMs a module over all tokens and all ranks; ``joined`` modules have copies in place of the second call."""
    saved = max(0.0, costs.call - 3 * costs.copy)
    return _product(group, costs, itemsize, 1, load.total, load.ranks) - joined * saved


def gather_cost(load: Load, group: Group, costs: Costs, itemsize: int, single: int) -> float:
    """Combinations of ``single`` tokens and more one by one; the others batched, padded to the longest of them."""
    small = [count for count in load.counts if count < single]
    cost = sum(_product(group, costs, itemsize, 1, count, load.widest) for count in load.counts if count >= single)
    if small:
        cost += _product(group, costs, itemsize, len(load.counts), max(small), load.widest)
    if not load.in_order:
        cost += costs.copy * (len(group.sets) + len(group.outs))
    return cost


def _product(group: Group, costs: Costs, itemsize: int, slots: int, tokens: int, ranks: int) -> float:
    calls = len(group.sets) + len(group.outs)
    width = sum(inputs.kind[0] * inputs.kind[1] for inputs in group.sets)
    width += sum(kind.out for kind, _ in group.outs.values())
    work = max(slots * tokens * ranks * width / costs.macs, slots * ranks * width * itemsize / costs.bytes)
    batched = costs.matrix * slots * calls if slots > 1 else 0.0
    return calls * costs.call + batched + work


def merge_cost(group: Group, ranks: int, costs: Costs) -> float:
    """Merging one mixture and restoring later: a dense product for each module, and its weight five times in fp32."""
    cost = 0.0
    for inputs in group.sets:
        for name in inputs.names:
            size = inputs.kind[0] * group.outs[name][0].out
            cost += costs.call + size * ranks / costs.macs + 5 * 4 * size / costs.stream
    return cost
