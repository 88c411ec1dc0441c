"""Replace the attention of a transformers model during a pass, and find the shapes of its layers."""

from typing import Any

import torch
from transformers import AttentionInterface

from pipeline.errors import UserError

from .flash import can_use_flash
from .packed import Step
from .segment import Options
from .slots import LayerShape

_NAME = "packed_slots"
_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}
_UNSUPPORTED = {"s_aux": "attention sinks", "position_bias": "a position bias"}


def _attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    packed: Step | None = None,
    **features: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers calls an attention function (`AttentionInterface`)."""
    unsupported = [description for name, description in _UNSUPPORTED.items() if features.get(name) is not None]
    if attention_mask is not None or not getattr(module, "is_causal", True):
        unsupported.append("a mask of its own")
    if packed is None:
        unsupported.append("no way to pass arguments to its attention")
    if unsupported:
        raise UserError(
            f"engine: {type(module).__name__} has {', '.join(unsupported)}, which the native engine does not support"
        )
    assert packed is not None
    return packed.attend(module.layer_idx, query, key, value, Options(scaling, sliding_window, softcap)), None


# No mask function has this name, so transformers makes no mask (`masking_utils._preprocess_mask_arguments`).
AttentionInterface.register(_NAME, _attend)


class _ShapeProbe(Step):
    """Records the shapes of each layer while one token runs."""

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
    """A transformers model whose attention reads and writes the slots of packed sequences.

    ``layers``: index of each layer's buffers in a slot, by layer number; ``shapes``: of these layers. Raises
    `UserError` if the model's attention is not supported.
    """

    def __init__(self, model: Any) -> None:
        _check_model(model)
        self.model = model
        configs = [module.config for module in model.modules() if hasattr(module, "config")]
        self._configs = list({id(config): config for config in configs}.values())
        probe = _ShapeProbe()
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        with torch.inference_mode():
            self.forward(probe, token, token, token[0])
        self._check_layers(probe.shapes)
        self.layers = {layer: index for index, layer in enumerate(probe.shapes)}
        self.shapes = list(probe.shapes.values())
        self.flash = can_use_flash(self.shapes, model.device)

    def forward(self, step: Step, ids: torch.Tensor, positions: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Run packed tokens [1 x tokens], and return the logits [kept x vocab] of those at the indices ``kept``."""
        # The attention is replaced during a pass only, so that others can use the model in between.
        before = [config._attn_implementation_internal for config in self._configs]
        for config in self._configs:
            config._attn_implementation_internal = _NAME
        try:
            output = self.model(
                input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=kept, packed=step
            )
        finally:
            for config, name in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = name
        logits: torch.Tensor = output.logits[0]
        return logits

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
                raise UserError(f"engine: layer {layer} of {name} does not pass its sliding window to its attention")


def _check_model(model: Any) -> None:
    """Raise `UserError` if the model's class or config shows that its attention is not supported."""
    config, name = model.config.get_text_config(), type(model).__name__
    kinds = sorted(set(getattr(config, "layer_types", None) or []) - _SUPPORTED_LAYERS)
    reasons = {
        "it does not attend through the AttentionInterface of transformers": not model._supports_attention_backend,
        "it has an encoder": bool(getattr(model.config, "is_encoder_decoder", False)),
        f"it has layers of kind {', '.join(kinds)}": bool(kinds),
        "its layers share keys and values": bool(getattr(config, "num_kv_shared_layers", 0)),
        "it attends in both directions": bool(getattr(config, "use_bidirectional_attention", None)),
        "it attends across to another input": bool(getattr(config, "add_cross_attention", False)),
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"engine: {name} cannot run in the native engine: {reason}")
