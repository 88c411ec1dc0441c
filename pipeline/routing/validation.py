"""Check the files of a saved router before anything is built from them."""

from typing import Any, get_args

import torch

from pipeline.untrusted import short_repr

from .network import TokenBag
from .policy import Fallback

_MAX_SIZE = 2**31  # of any dimension in the card; the tensors must have it too
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 1e-3, 1e3  # beyond, one class is certain, or all are alike, or NaN
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


NetworkType = type[TokenBag]


def check_files(card: dict[str, Any], tensors: dict[str, torch.Tensor], network_type: NetworkType) -> None:
    """Raise `ValueError` for the first value that `MlpRouter.save` would not write; allocate nothing large."""
    if not isinstance(card.get("shape"), dict):
        raise ValueError("the card has no shape")
    _check_card(card)
    shape = card["shape"]
    for name, size in shape.items():
        if isinstance(size, bool) or not isinstance(size, int) or not 0 < size < _MAX_SIZE:
            raise ValueError(f"the shape's {short_repr(name)} is {short_repr(size)}")
    _check_tensors(network_type, shape, len(card["labels"]), tensors)


def _check_card(card: dict[str, Any]) -> None:
    labels, thresholds = card.get("labels"), card.get("gate_thresholds")
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise ValueError(f"the labels are {short_repr(labels)}, not names")
    if len(set(labels)) < len(labels):
        raise ValueError("a label comes twice")
    if not _is_number(card.get("temperature")) or not _MIN_TEMPERATURE <= card["temperature"] <= _MAX_TEMPERATURE:
        raise ValueError(f"the temperature is {short_repr(card.get('temperature'))}")
    if not isinstance(thresholds, dict) or not all(
        _is_share(name) and _is_number(value) for name, value in thresholds.items()
    ):
        raise ValueError(f"the gate_thresholds are {short_repr(thresholds)}, not numbers")
    if card.get("fallback", "base") not in get_args(Fallback):
        raise ValueError(f"the fallback is {short_repr(card['fallback'])}, not one of {', '.join(get_args(Fallback))}")
    for name in ("tokenizer_fingerprint", "prompt_format"):
        if not isinstance(card.get(name), str):
            raise ValueError(f"the {name} is {short_repr(card.get(name))}, not text")


def _check_tensors(
    network_type: NetworkType, sizes: dict[str, int], labels: int, tensors: dict[str, torch.Tensor]
) -> None:
    with torch.device("meta"):
        model = network_type.of(sizes)
    shape = model.shape
    held_out, added = (_rows(tensors, name) for name in ("held_out.embedded", "classes.added"))
    network = {f"model.{name}": tuple(t.shape) for name, t in model.state_dict().items()}
    wanted = network | {
        "held_out.embedded": (held_out, shape.embedding),
        "held_out.targets": (held_out,),
        "classes.trained": (shape.classes, shape.embedding),
        "classes.added": (added, shape.embedding),
        "classes.margins": (added,),
        "classes.floors": (added,),
    }
    if set(wanted) != set(tensors):
        raise ValueError(f"missing or unknown tensors: {short_repr(sorted(set(wanted) ^ set(tensors)))}")
    for name, wanted_shape in wanted.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != wanted_shape:
            raise ValueError(f"{name} has the shape {short_repr(list(tensor.shape))}, not {list(wanted_shape)}")
        if not (tensor.dtype == torch.int64 if name == "held_out.targets" else tensor.dtype in _FLOATS):
            raise ValueError(f"{name} holds {tensor.dtype} values")
    if shape.classes + added != labels:
        raise ValueError(f"{labels} labels for {shape.classes} trained and {added} added classes")
    targets = tensors["held_out.targets"]
    if not ((targets >= 0) & (targets < labels)).all():
        raise ValueError("held_out.targets holds an index of no label")


def _rows(tensors: dict[str, torch.Tensor], name: str) -> int:
    tensor = tensors.get(name)
    return 0 if tensor is None or tensor.ndim == 0 else tensor.shape[0]


def _is_share(text: str) -> bool:
    """Whether a key of the thresholds is a share from 0 to 1, as `MlpRouter.threshold` looks it up."""
    try:
        return 0 <= float(text) <= 1 and text == str(float(text))
    except ValueError:
        return False


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
