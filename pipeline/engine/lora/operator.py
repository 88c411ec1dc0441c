"""The fused operator on a model: it wraps modules and chooses for each batch the form that they compute."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from pipeline.adapters import AdapterBank
from pipeline.engine.settings import LoraSettings
from pipeline.errors import UserError
from pipeline.records import Mixture

from . import cost
from .batch import Assignment
from .extras import extras_of
from .forms import Form, Union, rank_weights
from .gather import SINGLE, Gather
from .layers import base_shapes, check_layers, compute_dtype, one_device
from .layout import Site, group_modules
from .merged import GoldenWeights
from .panel import GatherPanel, UnionPanel
from .residency import Packed, Residency


class FusedLora:
    """Adds ``sum w_i s_i B_i A_i x`` to the output of every module that the bank's adapters change.

    Each row of a batch, or each token, has its own mixture of weights w_i. A batch is computed in the cheapest of three
    forms (`LoraSettings.mode`): the *union* of its adapters, stacked as A [R x in] and B [out x R], with
    ``((x A^T) * w) B^T``; each row's own adapters, *gathered*; or, if all rows have one mixture, *merged* into the
    weights, which are restored bit for bit afterwards. The other two forms never change the base weights.

    Raises `UserError` if the bank does not fit the model.
    """

    def __init__(self, model: nn.Module, bank: AdapterBank, settings: LoraSettings | None = None) -> None:
        name = getattr(model.config, "name_or_path", "") or type(model).__name__
        bank.check_base(base_shapes(model), name)
        check_layers(model, bank)
        bank.check_copies(model.state_dict(keep_vars=True).get, name)
        self.bank = bank
        self.settings = settings or LoraSettings()
        device, self._dtype = one_device(model), compute_dtype(model)
        self.golden = GoldenWeights(model, bank)
        if self.settings.mode == "merged":
            self.golden.check()
        self._groups = group_modules(model, bank)
        self.residency = Residency(
            bank, self._groups, self._dtype, device, self.settings.adapter_slots, self.golden.gain
        )
        self._unions = [UnionPanel(group, self._dtype, device) for group in self._groups]
        self._gathers = [GatherPanel(group, self._dtype, device) for group in self._groups]
        on_cpu = cost.CPU_FULL if self._dtype is torch.float32 else cost.CPU_HALF
        self._costs = cost.CUDA if device.type == "cuda" else on_cpu
        self._forms: list[Form | None] = [None] * len(self._groups)
        self._selected: dict[int, list[Form | None]] = {}
        self._batch = Assignment([], torch.zeros(0, dtype=torch.long))
        self._wrapped: list[tuple[nn.Module, object]] = []  # modules, and the ``forward`` that the wrapper replaced

    @property
    def forms(self) -> list[str]:
        """Forms of the batch: ``merged``, or one per group of modules; none if the base model runs alone."""
        if self.golden.mixture is not None:
            return ["merged"]
        return [type(form).__name__.lower() for form in self._forms if form is not None]

    @property
    def can_stay_union(self) -> bool:
        """Whether the union form is allowed, and the batches of a union differ only in their rank weights."""
        return self.settings.mode != "gather" and not any(group.biased or group.dora for group in self._groups)

    @property
    def union_forms(self) -> list[Union | None]:
        """The form of each group of modules, for a batch that was set with ``union``."""
        return [form if isinstance(form, Union) else None for form in self._forms]

    def set_mixtures(self, mixtures: Sequence[Mixture], expected_tokens: int = 0) -> None:
        """Set the mixtures of the rows of the next forward passes, in order; one for all tokens of a row.

        ``expected_tokens``: tokens of all rows that will run with these mixtures, as far as known; the cost of merging
        is spread over them.
        """
        self._set(Assignment(mixtures, torch.arange(len(mixtures))), expected_tokens)

    def set_tokens(
        self,
        mixtures: Sequence[Mixture],
        indices: torch.Tensor,
        kept: torch.Tensor | None = None,
        expected_tokens: int = 0,
        union: bool = False,
    ) -> None:
        """Set the mixtures of the tokens of the next forward pass, all in one row [1 x T].

        ``indices`` [T]: index of each token's mixture. ``kept``: indices of the tokens that the head sees, if the model
        gets them as ``logits_to_keep``; only adapters of the head need them. ``expected_tokens``: see `set_mixtures`.
        ``union``: use the union form, whatever it costs (`union_forms`).
        """
        self._set(Assignment(mixtures, indices.cpu(), by_token=True, kept=kept), expected_tokens, union)

    def detach(self) -> None:
        """Unwrap the modules and restore merged weights: the model is as before."""
        self._wrap_modules(False)
        self.golden.restore()

    def check_names(self, names: Sequence[str]) -> None:
        """Raise `UserError` for adapters that the bank does not have."""
        unknown = [name for name in names if name not in self.bank.adapters]
        if unknown:
            raise UserError(f"engine: no adapter {', '.join(unknown)} in the bank {self.bank.folder}")

    def _set(self, batch: Assignment, expected_tokens: int = 0, union: bool = False) -> None:
        self.check_names(batch.adapters)
        self._batch, self._selected = batch, {}
        if self._should_merge(batch, expected_tokens):
            self._wrap_modules(False)
            self._forms = [None] * len(self._groups)
            self.golden.merge(batch.mixtures[0])
            return
        self.golden.restore()
        packed = self.residency.use(batch.adapters)
        self._forms = [
            self._form(index, batch, {n: p for n, parts in packed.items() if (p := parts[index]) is not None}, union)
            for index in range(len(self._groups))
        ]
        self._wrap_modules(any(form is not None for form in self._forms))

    def _should_merge(self, batch: Assignment, expected_tokens: int) -> bool:
        if self.settings.mode not in ("auto", "merged") or not batch.adapters:
            return False
        if len(set(batch.mixtures)) > 1 or not self.golden.can_merge(batch.mixtures[0]):
            return False
        if self.settings.mode == "merged" or self.golden.mixture == batch.mixtures[0]:
            return True
        if not expected_tokens:
            return False
        itemsize = self._dtype.itemsize
        step = merging = 0.0
        for group, panel in zip(self._groups, self._unions, strict=True):
            ranks = sum(group.ranks.get(name, 0) for name in batch.adapters)
            if ranks:
                work = cost.Workload([batch.units], batch.units, ranks, ranks, True)
                step += cost.union_cost(work, group, self._costs, itemsize, panel.joined)
                merging += cost.merge_cost(group, ranks, self._costs)
        return step * expected_tokens / batch.units > merging

    def _form(self, index: int, batch: Assignment, packed: dict[str, Packed], union: bool) -> Form | None:
        """Return the form of a group for a batch; None if no adapter of the batch changes the group."""
        group = self._groups[index]
        if not packed:
            return None
        extras = extras_of(group, batch, packed)
        combinations = [tuple(name for name in mixture.adapters if name in group.ranks) for mixture in batch.mixtures]
        counts = batch.counts(combinations)
        single = SINGLE if batch.by_token else batch.units + 1  # a row's tokens stay together
        if counts and not (group.embedding or union) and self._pays_to_gather(index, batch, counts, single):
            gathered = self._gathers[index]
            panel = gathered.update(list(counts), packed)
            starts = [gathered.starts(names) if names in gathered.slots else {} for names in combinations]
            slots = torch.tensor([gathered.slots.get(names, -1) for names in combinations])[batch.indices]
            return Gather(panel, rank_weights(panel, batch, starts), extras, slots, single)
        union_panel = self._unions[index]
        panel = union_panel.update(packed)
        return Union(panel, rank_weights(panel, batch, [union_panel.starts] * len(batch.mixtures)), extras)

    def _pays_to_gather(self, index: int, batch: Assignment, counts: dict[tuple[str, ...], int], single: int) -> bool:
        if self.settings.mode in ("union", "gather"):
            return self.settings.mode == "gather"
        group = self._groups[index]
        ranks = {names: sum(group.ranks[name] for name in names) for names in counts}
        union = sum(group.ranks[name] for name in {name for names in counts for name in names})
        every_row = sum(counts.values()) == batch.units and set(counts.values()) == {1}
        work = cost.Workload(list(counts.values()), batch.units, union, max(ranks.values()), every_row)
        itemsize = self._dtype.itemsize
        union_cost = cost.union_cost(work, group, self._costs, itemsize, self._unions[index].joined)
        return cost.gather_cost(work, group, self._costs, itemsize, single) < union_cost

    def _wrap_modules(self, wanted: bool) -> None:
        """Wrap or unwrap all modules. Idle wrappers cost a microsecond each, so base and merged weights run without."""
        if wanted and not self._wrapped:
            for index, group in enumerate(self._groups):
                for site in group.sites:
                    self._wrapped.append((site.module, site.module.__dict__.get("forward")))
                    site.module.__dict__["forward"] = self._wrapper(index, site)
        if not wanted:
            for module, before in self._wrapped:
                del module.__dict__["forward"]
                if before is not None:  # other libraries put their own there too
                    module.__dict__["forward"] = before
            self._wrapped = []

    def _wrapper(self, index: int, site: Site) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the ``forward`` that replaces a module's own: hooks would cost 2 to 3 % of a small model's step."""
        base: Callable[[torch.Tensor], torch.Tensor] = site.module.forward
        width = 1 if self._groups[index].embedding else site.inputs.kind[0]

        def forward(x: torch.Tensor) -> torch.Tensor:
            form = self._forms[index]
            if form is None:
                return base(x)
            tokens = x.numel() // width
            if tokens != form.units and (self._batch.by_token or tokens % form.units):
                form = self._selected_form(index, tokens)
            return form.output(site, x, base)

        return forward

    def _selected_form(self, index: int, tokens: int) -> Form:
        """Return the form of a group for a layer that sees only some of the tokens."""
        if tokens not in self._selected:
            chosen = self._batch.selection(tokens)
            self._selected[tokens] = [form and form.select(chosen) for form in self._forms]
        form = self._selected[tokens][index]
        assert form is not None
        return form
