"""The layers of a model that adapters sit on: their shapes, their weights, what is refused of them."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pipeline.adapters import AdapterBank, BaseShapes, ModuleWeights
from pipeline.errors import UserError


def base_shapes(model: nn.Module) -> BaseShapes:
    """(in, out) features of every layer of a model that the fused operator can sit on; quantised ones too."""
    shapes = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (module.nx, module.nf)
        elif isinstance(module, nn.Embedding):
            shapes[name] = (module.num_embeddings, module.embedding_dim)
    return shapes


def check_layers(model: nn.Module, bank: AdapterBank) -> None:
    """`UserError` for an adapter that fits the shapes of the model (`AdapterBank.check_base`) but not its layers."""
    modules = dict(model.named_modules())
    for name in bank.names:
        for place, weights in bank.adapters[name].modules.items():
            problem = _problem(modules[place], weights)
            if problem:
                raise UserError(f"bank: adapter {name!r}: {place} {problem} ({bank.folder / name})")


def _problem(module: nn.Module, weights: ModuleWeights) -> str | None:
    if isinstance(module, nn.Embedding) != weights.embedding:
        return f"is a {type(module).__name__}, the adapter was trained for another kind of layer"
    if weights.magnitude is not None and plain_weight(module) is None:
        return "is quantised: DoRA needs the norms of unquantised weights (model.quantization=none)"
    if weights.base:
        own = {"weight": plain_weight(module), "bias": getattr(module, "bias", None)}
        if not all(_same(saved, own[part]) for part, saved in weights.base.items()):
            return "was changed or enlarged in training: only embeddings of the base model itself are computed exactly"
    return None


def _same(saved: torch.Tensor, weight: torch.Tensor | None) -> bool:
    """Whether a saved copy is the base model's weight, loaded in the same type or in another."""
    if weight is None or saved.shape != weight.shape:
        return False
    here = saved.to(weight.device)
    return torch.equal(here.to(weight.dtype), weight) or torch.equal(here, weight.to(saved.dtype))


def plain_weight(module: nn.Module) -> torch.Tensor | None:
    """The weight of a layer as a plain floating-point tensor, as it lies in the layer; None where it is quantised."""
    weight: Any = module.weight
    plain = type(weight) is nn.Parameter and type(weight.data) is torch.Tensor
    data: torch.Tensor | None = weight.data if plain and weight.is_floating_point() else None
    return data


def matrix(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """A weight as [out x in], a view: Conv1D and embeddings hold it the other way round."""
    return weight if isinstance(module, nn.Linear) else weight.T


def output_scale(module: nn.Module) -> float:
    """What an embedding multiplies its rows by (Gemma), rounded as the layer rounds it; else 1."""
    scale = getattr(module, "embed_scale", None)
    if not isinstance(module, nn.Embedding) or scale is None:
        return 1.0
    return float(torch.as_tensor(scale).to(module.weight.dtype))


def compute_dtype(model: nn.Module) -> torch.dtype:
    """The type of the activations: that of the model's first floating-point weight that is not quantised."""
    norms: Any = (p.dtype for p in model.parameters() if p.is_floating_point() and type(p.data) is torch.Tensor)
    dtype: torch.dtype = next(norms)
    return dtype


def one_device(model: nn.Module) -> torch.device:
    """Where the model is; `UserError` where it is in several places."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise UserError(f"engine: the model is spread over {', '.join(map(str, devices))}; load it on one device")
    return devices.pop()
