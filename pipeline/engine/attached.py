"""Use exact mixtures with transformers: attach a bank to a model, and generate with `model.generate`."""

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
from .settings import LoraSettings

MixtureLike = Mixture | Mapping[str, float] | str | None
"""A mixture, weights by adapter name, the name of one adapter, or None for the base model alone."""

_for_all_models: ContextVar[tuple[Mixture, ...] | None] = ContextVar("mixtures", default=None)


def attach(model: nn.Module, bank: AdapterBank | str | Path, settings: LoraSettings | None = None) -> "Attached":
    """Attach a bank to a transformers causal LM, so that each row of a batch can have its own mixture.

    The model's weights and modules do not change, and outside of `mixtures` it computes the same as before. A
    ``with attach(...) as handle`` block detaches at its end. ``bank``: a bank, or its folder. Raises `UserError` if the
    bank does not fit the model, or if the model has adapters of another library.
    """
    return Attached(model, bank if isinstance(bank, AdapterBank) else AdapterBank.load(bank), settings)


@contextmanager
def mixtures(rows: Sequence[MixtureLike]) -> Iterator[None]:
    """Set the mixtures of the rows of a batch, in order, for every attached model that is called in the block.

    If ``generate`` repeats the rows (beams, several sequences per row), their mixtures are repeated likewise.
    """
    token = _for_all_models.set(_parse_mixtures(rows))
    try:
        yield
    finally:
        _for_all_models.reset(token)


class Attached:
    """A bank attached to a model, until `detach`."""

    def __init__(self, model: nn.Module, bank: AdapterBank, settings: LoraSettings | None) -> None:
        _refuse_other_adapters(model)
        self.model = model
        self.lora = FusedLora(model, bank, settings)
        self._own: ContextVar[tuple[Mixture, ...] | None] = ContextVar("own_mixtures", default=None)
        self._current: tuple[Mixture, ...] = ()
        self._hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        model._loraloom = True  # type: ignore[assignment]

    def __enter__(self) -> "Attached":
        return self

    def __exit__(self, *raised: object) -> None:
        self.detach()

    @contextmanager
    def mixtures(self, rows: Sequence[MixtureLike]) -> Iterator[None]:
        """Set mixtures as the function `mixtures` does, for this model alone; checks the adapter names at once."""
        parsed = _parse_mixtures(rows)
        self.lora.check_names([name for mixture in parsed for name in mixture.adapters])
        token = self._own.set(parsed)
        try:
            yield
        finally:
            self._own.reset(token)

    def detach(self) -> None:
        """Unwrap all modules and restore merged weights: the model is as it was, bit for bit."""
        self._hook.remove()
        self.lora.detach()
        if hasattr(self.model, "_loraloom"):
            del self.model._loraloom

    def _before_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mixtures = self._own.get() or _for_all_models.get() or ()
        if torch.compiler.is_compiling():
            raise UserError("attach: a compiled forward pass would keep the mixtures of its first call; do not compile")
        repeated = _repeat(mixtures, args, kwargs) if mixtures else ()
        if repeated != self._current or not repeated:
            self.lora.set_mixtures(repeated)
            self._current = repeated


def _parse_mixtures(rows: Sequence[MixtureLike]) -> tuple[Mixture, ...]:
    if isinstance(rows, (str, Mapping, Mixture)) or not rows:
        raise UserError("mixtures: give a list with one mixture for each row of the batch")
    return tuple(_parse_mixture(row) for row in rows)


def _parse_mixture(row: MixtureLike) -> Mixture:
    if isinstance(row, Mixture):
        return row
    return Mixture.of({row: 1.0} if isinstance(row, str) else row or {})


def _repeat(mixtures: tuple[Mixture, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Mixture, ...]:
    """Repeat each mixture as often as ``generate`` repeats its row, in its order (``repeat_interleave``)."""
    inputs = (*args[:1], kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
    rows = next((len(value) for value in inputs if value is not None), None)
    if rows is None:
        raise UserError("attach: the model was called without input_ids or inputs_embeds")
    if rows % len(mixtures):
        raise UserError(f"mixtures: {len(mixtures)} mixtures for a batch of {rows} rows; give one for each row")
    return tuple(mixture for mixture in mixtures for _ in range(rows // len(mixtures)))


def _refuse_other_adapters(model: nn.Module) -> None:
    if getattr(model, "_loraloom", False):
        raise UserError("attach: a bank is already attached to this model; detach it first")
    for name, module in model.named_modules():
        if hasattr(module, "base_layer"):
            raise UserError(
                f"attach: {name} is already wrapped by {type(module).__module__}.{type(module).__name__};"
                " give the model without adapters (PEFT: peft_model.unload())"
            )
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise UserError("attach: the model is compiled; give the model that torch.compile was called on")
