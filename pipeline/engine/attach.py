"""Exact mixtures in plain transformers, on a model that someone else generates with."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.adapters import AdapterBank
from pipeline.errors import UserError
from pipeline.records import Mixture

from .lora.operator import FusedLora
from .lora.settings import LoraSettings

Asked = Mixture | Mapping[str, float] | str | None
"""A mixture, weights by adapter name, the name of one adapter, or None for the base model alone."""

_everywhere: ContextVar[tuple[Mixture, ...] | None] = ContextVar("mixtures", default=None)


def attach(model: nn.Module, bank: AdapterBank | str | Path, settings: LoraSettings | None = None) -> "Attached":
    """Let a transformers causal LM answer each row of a batch with a mixture of its own.

    The model's weights and modules stay as they are, and outside of `mixtures` it computes what it did before; a
    ``with attach(...) as handle`` block detaches at its end. ``bank``: a bank, or the folder of one. `UserError`
    where the bank does not fit the model, or where another library has put adapters into it.
    """
    return Attached(model, bank if isinstance(bank, AdapterBank) else AdapterBank.load(bank), settings)


@contextmanager
def mixtures(rows: Sequence[Asked]) -> Iterator[None]:
    """Mixtures of the rows of a batch, in order, for every attached model called in the block.

    ``generate`` with beams or several sequences for each row repeats the rows' mixtures as it repeats the rows.
    """
    token = _everywhere.set(_mixtures(rows))
    try:
        yield
    finally:
        _everywhere.reset(token)


class Attached:
    """A bank on a model; `detach` takes it off."""

    def __init__(self, model: nn.Module, bank: AdapterBank, settings: LoraSettings | None) -> None:
        _refuse_other_adapters(model)
        self.model = model
        self.lora = FusedLora(model, bank, settings)
        self._own: ContextVar[tuple[Mixture, ...] | None] = ContextVar("own_mixtures", default=None)
        self._set: tuple[Mixture, ...] = ()
        self._hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        model._loraloom = True  # type: ignore[assignment]

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, *raised: object) -> None:
        self.detach()

    @contextmanager
    def mixtures(self, rows: Sequence[Asked]) -> Iterator[None]:
        """As the function `mixtures`, for this model alone; adapters that the bank lacks are named at once."""
        asked = _mixtures(rows)
        self.lora.check_names([name for mixture in asked for name in mixture.adapters])
        token = self._own.set(asked)
        try:
            yield
        finally:
            self._own.reset(token)

    def detach(self) -> None:
        """Unwrap all modules and put merged weights back: model and weights are as they were, bit for bit."""
        self._hook.remove()
        self.lora.detach()
        if hasattr(self.model, "_loraloom"):
            del self.model._loraloom

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        asked = self._own.get() or _everywhere.get() or ()
        if torch.compiler.is_compiling():
            raise UserError("attach: a compiled forward pass would keep the mixtures of its first call; do not compile")
        wanted = _repeated(asked, _rows(args, kwargs)) if asked else ()
        if wanted != self._set or not wanted:
            self.lora.set_mixtures(wanted)
            self._set = wanted


def _mixtures(rows: Sequence[Asked]) -> tuple[Mixture, ...]:
    if isinstance(rows, (str, Mapping, Mixture)) or not rows:
        raise UserError("mixtures: give a list with one mixture for each row of the batch")
    return tuple(_mixture(row) for row in rows)


def _mixture(asked: Asked) -> Mixture:
    if isinstance(asked, Mixture):
        return asked
    if isinstance(asked, str):
        return Mixture.of({asked: 1.0})
    return Mixture.of(asked or {})


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Rows of the batch that the model is called with."""
    for value in (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds")):
        if value is not None:
            return int(value.shape[0])
    raise UserError("attach: the model was called without input_ids or inputs_embeds")


def _repeated(asked: tuple[Mixture, ...], rows: int) -> tuple[Mixture, ...]:
    """Each mixture as often as ``generate`` repeats its row, in its order (``repeat_interleave``)."""
    if rows % len(asked):
        raise UserError(f"mixtures: {len(asked)} mixtures for a batch of {rows} rows; give one for each row")
    return tuple(mixture for mixture in asked for _ in range(rows // len(asked)))


def _refuse_other_adapters(model: nn.Module) -> None:
    if getattr(model, "_loraloom", False):
        raise UserError("attach: a bank is attached to this model already; detach it first")
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            raise UserError(
                f"attach: {name} is already wrapped by {type(module).__module__}.{type(module).__name__};"
                " give the model without adapters (PEFT: peft_model.unload())"
            )
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise UserError("attach: the model is compiled; give the model that torch.compile was called on")
