"""The engine's place in a transformers model: its attention function, and what it needs to know of the layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from pipeline.errors import UserError

from .flash import is_flash
from .packed import Options
from .slots import LayerShape

_NAME = "packed_slots"
_LAYERS = {"full_attention", "sliding_attention"}
_REFUSED = {"s_aux": "attention sinks", "position_bias": "a position bias"}


class Attends(Protocol):
    """Where queries, keys and values of a layer go."""

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        """Output [1 x tokens x query heads x dim] for queries [1 x heads x tokens x dim]."""
        ...


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: Attends | None = None,
    **features: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function as transformers calls it (`AttentionInterface`)."""
    name = type(module).__name__
    unknown = [what for key_, what in _REFUSED.items() if features.get(key_) is not None]
    if attention_mask is not None or not getattr(module, "is_causal", True):
        unknown.append("a mask of its own")
    if packed is None:
        unknown.append("no way to hand arguments to its attention")
    if unknown:
        raise UserError(f"engine: {name} has {', '.join(unknown)}, which the native engine does not support")
    assert packed is not None
    return packed.attend(module.layer_idx, query, key, value, Options(scaling, sliding_window, softcap)), None


# No mask function has this name, so transformers makes no mask (`masking_utils._preprocess_mask_arguments`).
AttentionInterface.register(_NAME, _attend)


class _Probe:
    """Notes the shapes of each layer while one token runs."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, options: Options
    ) -> torch.Tensor:
        if layer in self.shapes:
            raise UserError(f"engine: layer {layer} attends twice, which the native engine does not support")
        capped = options.softcap is not None
        self.shapes[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3], key.dtype, options.window, capped)
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2)


class PackedAttention:
    """A model with the engine's attention, and the shapes of its layers; `UserError` where it does not fit."""

    def __init__(self, model: Any) -> None:
        _check(model)
        self.model = model
        configs = [module.config for module in model.modules() if hasattr(module, "config")]
        self._configs = list({id(config): config for config in configs}.values())
        probe = _Probe()
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        with torch.inference_mode():
            self.run(probe, token, token, token[0])
        self._check_layers(probe.shapes)
        self.layers = {layer: place for place, layer in enumerate(probe.shapes)}
        self.shapes = list(probe.shapes.values())
        self.flash = is_flash(self.shapes, model.device)

    def run(self, packed: Attends, ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Logits [kept x vocab] of a pass over packed tokens [1 x tokens]."""
        with self._active():
            output = self.model(
                input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=kept, packed=packed
            )
        logits: torch.Tensor = output.logits[0]
        return logits

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Only during a pass, so that others can use the model between."""
        before = [config._attn_implementation_internal for config in self._configs]
        for config in self._configs:
            config._attn_implementation_internal = _NAME
        try:
            yield
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = name

    def _check_layers(self, shapes: dict[int, LayerShape]) -> None:
        config, name = self.model.config.get_text_config(), type(self.model).__name__
        if len(shapes) != config.num_hidden_layers:
            raise UserError(
                f"engine: {len(shapes)} of the {config.num_hidden_layers} layers of {name} attend through the"
                " AttentionInterface of transformers; the native engine needs all"
            )
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else ""] * len(shapes)
        for layer, kind in enumerate(kinds):
            if kind == "sliding_attention" and shapes[layer].window is None:
                raise UserError(f"engine: layer {layer} of {name} does not say its sliding window to its attention")


def _check(model: Any) -> None:
    """`UserError` for what is known from the model's class and config."""
    config, name = model.config.get_text_config(), type(model).__name__
    kinds = sorted(set(getattr(config, "layer_types", None) or []) - _LAYERS)
    reasons = {
        "it does not attend through the AttentionInterface of transformers": not model._supports_attention_backend,
        "it has an encoder": bool(getattr(model.config, "is_encoder_decoder", False)),
        f"it has layers of kind {', '.join(kinds)}": bool(kinds),
        "its layers share keys and values": bool(getattr(config, "num_kv_shared_layers", 0)),
        "it attends in both directions": bool(getattr(config, "use_bidirectional_attention", None)),
        "it attends across to another input": bool(getattr(config, "add_cross_attention", False)),
    }
    for reason, true in reasons.items():
        if true:
            raise UserError(f"engine: {name} cannot run in the native engine: {reason}")
