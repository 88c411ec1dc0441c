"""Mixtures the plain way: weights of a copy of the model, merged adapter by adapter."""

import copy
from typing import Any

import torch
from torch import nn

from pipeline.adapters import AdapterBank, ModuleWeights
from pipeline.records import Mixture


def merged(model: Any, bank: AdapterBank, mixture: Mixture) -> Any:
    """A copy of the model with ``W + sum w_i (W_i - W)``, W_i the weights of adapter i alone; biases alike."""
    copied = copy.deepcopy(model)
    modules: dict[str, Any] = dict(copied.named_modules())
    base = {name: module.weight.data.clone() for name, module in modules.items() if name in bank.modules}
    for name in base:  # an embedding that shares its weight with the head gets one of its own
        modules[name].weight = nn.Parameter(base[name].clone())
    for name, weight in zip(mixture.adapters, mixture.weights, strict=True):
        for place, part in bank.adapters[name].modules.items():
            module = modules[place]
            turned = not isinstance(module, nn.Linear)
            own = base[place].T if turned else base[place]
            change = weight * (alone(own, part) - own)
            module.weight.data += change.T if turned else change
            if part.bias is not None:
                shift = weight * part.scale * part.bias
                module.bias = nn.Parameter(shift if module.bias is None else module.bias.data + shift)
    return copied


def alone(weight: torch.Tensor, part: ModuleWeights) -> torch.Tensor:
    """Weights [out x in] with one adapter: ``W + s B A``, for DoRA its rows brought to their magnitudes."""
    # In fp64: adapters may be stored in bf16, and a product in it is rounded to 8 bits.
    changed = weight + (part.scale * (part.B.double() @ part.A.double())).to(weight.dtype)
    if part.magnitude is None:
        return changed
    return changed * (part.magnitude / changed.norm(dim=1)).unsqueeze(1)


def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """The project's sense of exact: 1e-4 in the logits, same argmax."""
    assert (found - expected).abs().max() < 1e-4
    assert torch.equal(found.argmax(-1), expected.argmax(-1))
