"""Cost in microseconds of each form of a batch: precise enough to choose a form, not to predict a step."""

from collections.abc import Sequence
from dataclasses import dataclass

from .layout import Group


@dataclass(frozen=True)
class Costs:
    """Costs of one device.

    ``call``: a GEMM of any size. ``matrix``: each further matrix of a batched GEMM. ``copy``: a small indexed copy.
    ``macs``: multiply-adds per microsecond. ``bytes``, ``stream``: bytes per microsecond of memory traffic, for the
    stacks within a step and for whole weights.
    """

    call: float
    matrix: float
    copy: float
    macs: float
    bytes: float
    stream: float


# One thread of an AMD EPYC with AVX-512 (bf16, fp32; [8 to 32 x 576] by [64 to 800 x 576]); CUDA from its data sheets.
# More threads speed up both forms alike. On a CPU ``bytes`` is the rate of a decode step, whose earlier layers have
# evicted the stacks from the caches: half the rate of a product in a loop. These are constants, not measured at start:
# the form decides how sums are rounded, so it must not depend on the load of the machine.
CPU_HALF = Costs(call=18, matrix=0.8, copy=4, macs=80e3, bytes=7e3, stream=15e3)
CPU_FULL = Costs(call=3, matrix=0.3, copy=4, macs=36e3, bytes=7e3, stream=15e3)
CUDA = Costs(call=6, matrix=0.02, copy=5, macs=200e6, bytes=3e6, stream=3e6)


@dataclass(frozen=True)
class Workload:
    """The tokens and ranks of a batch in one group.

    ``counts``: tokens of each combination of adapters, without the base model alone. ``total``: tokens of the batch.
    ``ranks``: of the union of its adapters. ``max_ranks``: of the largest combination. ``in_order``: each row has a
    combination of its own.
    """

    counts: Sequence[int]
    total: int
    ranks: int
    max_ranks: int
    in_order: bool


def union_cost(work: Workload, group: Group, costs: Costs, itemsize: int, joined: int = 0) -> float:
    """Return the cost of two GEMMs per module; ``joined`` modules replace the second one by copies."""
    saved = max(0.0, costs.call - 3 * costs.copy)
    return _product(group, costs, itemsize, 1, work.total, work.ranks) - joined * saved


def gather_cost(work: Workload, group: Group, costs: Costs, itemsize: int, single: int) -> float:
    """Return the cost of multiplying each combination with its own tokens.

    Combinations of at least ``single`` tokens run one by one, the others in one batch, padded to the longest of them.
    """
    small = [count for count in work.counts if count < single]
    cost = sum(_product(group, costs, itemsize, 1, count, work.max_ranks) for count in work.counts if count >= single)
    if small:
        cost += _product(group, costs, itemsize, len(work.counts), max(small), work.max_ranks)
    if not work.in_order:
        cost += costs.copy * (len(group.sets) + len(group.sites))
    return cost


def _product(group: Group, costs: Costs, itemsize: int, slots: int, tokens: int, ranks: int) -> float:
    calls = len(group.sets) + len(group.sites)
    width = sum(inputs.kind[0] * inputs.kind[1] for inputs in group.sets)
    width += sum(site.kind.out for site in group.sites)
    work = max(slots * tokens * ranks * width / costs.macs, slots * ranks * width * itemsize / costs.bytes)
    batched = costs.matrix * slots * calls if slots > 1 else 0.0
    return calls * costs.call + batched + work


def merge_cost(group: Group, ranks: int, costs: Costs) -> float:
    """Return the cost of merging one mixture and of restoring it: per module, a product and five fp32 passes."""
    cost = 0.0
    for site in group.sites:
        size = site.kind.width * site.kind.out
        cost += costs.call + size * ranks / costs.macs + 5 * 4 * size / costs.stream
    return cost
