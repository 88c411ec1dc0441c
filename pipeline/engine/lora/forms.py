"""The forms in which a group of modules computes a batch: their interface, and the union, one stack for all rows."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn.functional import linear

from .batch import Assignment
from .extras import Extras
from .layout import InputSet, Site
from .panel import Panel

_TRANSPOSED_UNITS = (32, 48, 64)  # in half precision on a CPU: see `Union`


class Form:
    """The computation of the modules of one group for a batch.

    ``weights`` [units x ranks]: from `rank_weights`.
    """

    def __init__(self, panel: Panel, weights: torch.Tensor, extras: Extras | None) -> None:
        self.panel, self.weights, self.extras = panel, weights, extras
        self.units, self._dtype = len(weights), panel.dtype
        self._last: tuple[torch.Tensor, InputSet] | None = None
        self._inner: Sequence[torch.Tensor] = ()

    def output(self, site: Site, x: torch.Tensor, base: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return a module's output with the group's adapters.

        ``x``: [... x in] or token ids, units in order. ``base``: the module without adapters.
        """
        unchanged = base(x)
        output = unchanged
        if output.dtype is not self._dtype or not output.is_contiguous():
            output = output.to(self._dtype, memory_format=torch.contiguous_format)
        extra = None if self.extras is None else self.extras.added(site, output)
        self._outer(site, output, self._inner_of(site, x))
        if extra is not None:
            output.add_(extra)
        return output if output.dtype is unchanged.dtype else output.to(unchanged.dtype)

    def _inner_of(self, site: Site, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return ``(x A^T) * w`` for each module that shares the input; computed once for all of them.

        Inputs are compared by identity: in some models, siblings are called with different tensors.
        """
        if self._last is None or self._last[0] is not x or self._last[1] is not site.inputs:
            self._inner = self._inners(site.inputs, x if self.panel.group.embedding else x.to(self._dtype))
            self._last = (x, site.inputs)
        return self._inner

    def _inners(self, inputs: InputSet, x: torch.Tensor) -> Sequence[torch.Tensor]:
        raise NotImplementedError

    def _outer(self, site: Site, output: torch.Tensor, inner: Sequence[torch.Tensor]) -> None:
        raise NotImplementedError

    def select(self, units: torch.Tensor) -> "Form":
        """Return the form of some of the units."""
        raise NotImplementedError

    def _weighted(self, inner: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return x A^T times w. In fp16, ranks of other units' adapters may overflow, and infinity times 0 is NaN."""
        if self._dtype is torch.float16:
            inner = torch.where(weights != 0, inner, 0)
        if inner.dtype is weights.dtype:
            return inner.mul_(weights)
        return (inner * weights).to(self._dtype)


class Union(Form):
    """``((x A^T) * w) B^T`` with all adapters of the batch in A and B; w is zero for adapters of other units.

    If the panel holds the base weights W beside B, module and adapters are one product, ``[x, (x A^T) * w] [W, B]^T``,
    summed in fp32 and rounded once.

    For a few dozen tokens in half precision on a CPU it computes ``A x^T`` instead of ``x A^T``: each call reorders the
    second operand into blocks, and the tokens are the smaller operand. This takes a sixth to a quarter less time
    (measured; oneDNN, AVX-512, tokens a multiple of 16).
    """

    def __init__(self, panel: Panel, weights: torch.Tensor, extras: Extras | None) -> None:
        super().__init__(panel, weights, extras)
        self._shaped, self._flat = weights.view(len(weights), 1, 1, -1), weights.unsqueeze(1)
        transposed = weights.device.type == "cpu" and self._dtype.itemsize == 2 and self.units in _TRANSPOSED_UNITS
        self._transposed = weights.T.contiguous() if transposed and not panel.group.embedding else None
        # Cached views: in a decode step of a small model, Python takes as long as the products.
        self._a: dict[tuple[tuple[int, int], int], torch.Tensor] = {}
        self._b: dict[str, torch.Tensor] = {}
        self._joined: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._concatenated: list[torch.Tensor] = []
        self._concatenated_inner: Sequence[torch.Tensor] = ()

    def reweight(self, weights: torch.Tensor) -> None:
        """Overwrite the weights [units x ranks] in place."""
        self.weights.copy_(weights)
        if self._transposed is not None:
            self._transposed.copy_(weights.T)

    def output(self, site: Site, x: torch.Tensor, base: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return a module's output; see `Form.output`."""
        joined = self._joined.get(site.name)
        if joined is None:
            if self.extras is not None or site.kind not in self.panel.joined:
                return super().output(site, x, base)
            joined = self._joined[site.name] = self.panel.joined[site.kind][site.index], site.bias
        inner = self._inner_of(site, x)
        if inner is not self._concatenated_inner:
            self._concatenated = self._concatenate(x.reshape(-1, site.kind.width), inner)
            self._concatenated_inner = inner
        (weight, bias), row = joined, self._concatenated[site.position]
        if self._transposed is None or len(row) != self.units:
            output = linear(row, weight, bias)
        elif bias is None:
            output = torch.mm(weight, row.T).T.contiguous()
        else:
            output = torch.addmm(bias.unsqueeze(1), weight, row.T).T.contiguous()
        return output.unsqueeze(0) if x.ndim == 3 and len(x) == 1 else output.view(*x.shape[:-1], -1)

    def _concatenate(self, x: torch.Tensor, inner: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return, per module, the input [tokens x in] with the module's ranks: before it on side 0, after it on side 1.

        Two modules share a copy of the input.
        """
        concatenated: list[torch.Tensor] = []
        width = x.shape[1] + self.panel.ranks
        for first in range(0, len(inner), 2):
            row = torch.cat((inner[first], x, *inner[first + 1 : first + 2]), 1)
            concatenated += [row[:, :width], row[:, self.panel.ranks :]]
        return concatenated

    def _inners(self, inputs: InputSet, x: torch.Tensor) -> Sequence[torch.Tensor]:
        width, modules = inputs.kind
        a = self._a.get((inputs.kind, inputs.index))
        if a is None:
            a = self._a[inputs.kind, inputs.index] = self.panel.A[inputs.kind][inputs.index, 0].view(-1, width)
        units, ranks = self.weights.shape
        if self._transposed is not None and x.numel() == units * width:
            columns = torch.mm(a, x.reshape(units, width).T).view(modules, ranks, units)
            return [part.T for part in self._weighted(columns, self._transposed).unbind()]
        inner = a.index_select(1, x.flatten()).T if self.panel.group.embedding else linear(x.reshape(-1, width), a)
        if len(inner) == units:
            return self._weighted(inner.view(units, modules, ranks), self._flat).unbind(1)
        weighted = self._weighted(inner.reshape(units, -1, modules, ranks), self._shaped)
        return weighted.view(-1, modules, ranks).unbind(1)

    def _outer(self, site: Site, output: torch.Tensor, inner: Sequence[torch.Tensor]) -> None:
        b = self._b.get(site.name)
        if b is None:
            b = self._b[site.name] = self.panel.B[site.kind][site.index, 0]
        output.view(-1, site.kind.out).addmm_(inner[site.position], b)

    def select(self, units: torch.Tensor) -> Form:
        """Return the form of some of the units."""
        weights = self.weights[units.to(self.weights.device)]
        return Union(self.panel, weights, self.extras and self.extras.select(units))


def narrowed(weights: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return rank weights in the dtype of the activations if that changes none of them, as with weights in sixteenths.

    Products are then bit-equal and take one kernel instead of two. Other weights stay fp32, because rounding them to
    bf16 before the product would lose 8 bits.
    """
    narrow = weights.to(dtype)
    return narrow if torch.equal(narrow.float(), weights) else weights


def rank_weights(panel: Panel, batch: Assignment, starts: Sequence[Mapping[str, int]]) -> torch.Tensor:
    """Return weights [units x ranks]: mixture weight times the adapter's scale, in fp32 or `narrowed`.

    ``starts``: for each mixture, the first rank of each adapter.
    """
    group, matrix = panel.group, torch.zeros(len(batch.mixtures), panel.ranks)
    for row, (mixture, start) in enumerate(zip(batch.mixtures, starts, strict=True)):
        for name, weight in zip(mixture.adapters, mixture.weights, strict=True):
            if name in start:
                matrix[row, start[name] : start[name] + group.ranks[name]] = weight * group.scales[name]
    return narrowed(matrix[batch.indices], panel.dtype).to(panel.device)
