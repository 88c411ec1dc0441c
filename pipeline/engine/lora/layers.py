"""The layers of a model that adapters change: their shapes and weights, and the checks of a bank against them."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from pipeline.adapters import AdapterBank, BaseShapes, ModuleWeights
from pipeline.errors import UserError
from pipeline.models import StoredWeights, load_skeleton


def load_bank(
    folder: str | Path,
    only: Iterable[str] | None,
    config: Any,
    model: str,
    trust_remote_code: bool = False,
    values: bool = True,
) -> AdapterBank:
    """Load a bank, or only some of its adapters, and check it against the base model without loading that.

    ``config``: the transformers config of the model. ``model``: its folder or hub id. ``values``: the weights of bank
    and model are here, not their headers alone. Raises `UserError` for an adapter that does not fit the model.
    """
    bank = AdapterBank.load(folder, only)
    check_bank(bank, load_skeleton(config, trust_remote_code), model, values)
    return bank


def check_bank(bank: AdapterBank, skeleton: nn.Module, model: str, values: bool = True) -> None:
    """Check a bank against a base model that is not loaded; `UserError` for the first adapter that does not fit.

    ``skeleton``: of `load_skeleton`. ``model``, ``values``: see `load_bank`.
    """
    name = model.rstrip("/").rsplit("/", 1)[-1]
    bank.check_base(base_shapes(skeleton), name)
    check_layers(skeleton, bank)
    stored = StoredWeights(model if values else "", skeleton)
    bank.check_copies(stored.get, name)
    bank.check_values()  # last, because it reads all tensors: their sizes are checked by now


def base_shapes(model: nn.Module) -> BaseShapes:
    """Return the (in, out) features of each layer that adapters can change, quantized layers included."""
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
    """Raise `UserError` for an adapter that fits the model's shapes (`AdapterBank.check_base`) but not its layers."""
    modules = dict(model.named_modules())
    for name in bank.names:
        for module, weights in bank.adapters[name].modules.items():
            problem = _problem(modules[module], weights)
            if problem:
                raise UserError(f"bank: adapter {name!r}: {module} {problem} ({bank.folder / name})")


def _problem(module: nn.Module, weights: ModuleWeights) -> str | None:
    if isinstance(module, nn.Embedding) != weights.embedding:
        return f"is a {type(module).__name__}, the adapter was trained for another kind of layer: another base model?"
    if weights.magnitude is not None and plain_weight(module) is None:
        return "is quantised: DoRA needs the norms of unquantised weights (model.quantization=none)"
    return None


def plain_weight(module: nn.Module) -> torch.Tensor | None:
    """Return the weight of a layer as a floating-point tensor, in the layer's own layout; None if it is quantized."""
    weight = module.weight
    if type(weight) is nn.Parameter and type(weight.data) is torch.Tensor and weight.is_floating_point():
        return weight.data if weight.itemsize > 1 else None  # fp8 has its scales elsewhere
    return None


def matrix(module: nn.Module, weight: torch.Tensor) -> torch.Tensor:
    """Return a weight as a view [out x in]; Conv1D and embeddings hold it transposed."""
    return weight if isinstance(module, nn.Linear) else weight.T


def output_scale(module: nn.Module) -> float:
    """Return the factor that an embedding multiplies its rows by (Gemma), rounded as the layer rounds it; else 1."""
    scale = getattr(module, "embed_scale", None)
    if not isinstance(module, nn.Embedding) or scale is None:
        return 1.0
    return float(torch.as_tensor(scale).to(module.weight.dtype))


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the activations: of the first floating-point weight that is not quantized."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point() and type(p.data) is torch.Tensor)


def one_device(model: nn.Module) -> torch.device:
    """Return the device of the model; raises `UserError` if it is spread over several."""
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        raise UserError(f"engine: the model is spread over {', '.join(map(str, devices))}; load it on one device")
    return devices.pop()
