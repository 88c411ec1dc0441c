"""Read and check the tensors of one adapter, by module."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from pipeline.errors import UserError, one_line
from pipeline.untrusted import check_tensor_file, printable_name, short_repr

from .config import AdapterConfig
from .files import DTYPES, MappedFile, shard_of_tensor, weight_files

# PEFT's names. `save_pretrained` leaves out the name of the adapter and what wrapped the model in training; a state
# dict saved by hand has them, and adapters that were injected into a model lack the prefix.
_WRAPPERS = re.compile(r"^module\.|\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PREFIX = r"(?:base_model\.model\.)?"
_LORA = re.compile(
    rf"{_PREFIX}(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
_PARTS = {
    **{("lora_A", "weight"): "A", ("lora_embedding_A", None): "A"},
    **{("lora_B", "weight"): "B", ("lora_embedding_B", None): "B", ("lora_B", "bias"): "bias"},
    **{("lora_magnitude_vector", None): "magnitude", ("lora_magnitude_vector", "weight"): "magnitude"},
}
# A weight of the base model itself.
_COPY = re.compile(rf"{_PREFIX}(?P<module>.+?)(?:\.(?:base_layer|modules_to_save(?:\.[^.]+)?))?\.(?P<leaf>weight|bias)")
_TRAINING_ONLY = re.compile(r".+\.(?:lora_velora_embed|lora_monteclora_sampler)\b.*")
_MAX_KEY = 500  # characters
_MAX_DIMENSIONS, _MAX_SIZE = 8, 2**31  # of a tensor: one without values may claim any size


@dataclass(frozen=True)
class ModuleWeights:
    """The change of one module by one adapter: ``y += scale * (B A x + bias)``, or its DoRA form.

    ``A`` [r x in], ``B`` [out x r], ``bias`` [out] (`lora_bias`), ``magnitude`` [out] (DoRA, arXiv 2402.09353).
    ``embedding``: the module looks rows up, so ``in`` counts the vocabulary.
    """

    A: torch.Tensor
    B: torch.Tensor
    scale: float
    bias: torch.Tensor | None = None
    magnitude: torch.Tensor | None = None
    embedding: bool = False

    @property
    def rank(self) -> int:
        """Return the rank r."""
        return self.A.shape[0]

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of the adapter that are set, by name."""
        named = {"A": self.A, "B": self.B, "bias": self.bias, "magnitude": self.magnitude}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


class AdapterWeights(NamedTuple):
    """The weights of one adapter by module, and by name the weights of the base model that its file carries too."""

    modules: dict[str, ModuleWeights]
    copies: dict[str, torch.Tensor]


def read_weights(folder: Path, config: AdapterConfig) -> AdapterWeights:
    """Read the tensors of an adapter's folder; `UserError` for pickles, bad names, shapes or dtypes.

    Tensors are mapped into memory, not read: their pages are loaded at the first use.
    """
    found = _Tensors(folder, config)
    missing = set(shard_of_tensor(folder))
    for path in weight_files(folder):
        try:
            missing -= found.read(path)
            config.check_patterns(len(found.modules))
        except (OSError, ValueError, SafetensorError) as error:
            raise _bad(folder, f"{path.name} is not a safetensors file of LoRA weights: {one_line(error)}") from None
    if missing:
        raise _bad(folder, f"its index lists {short_repr(min(missing))}, which no shard holds; copy all files again")
    if not found.modules:
        raise _bad(folder, "no LoRA tensors: training or saving went wrong; save it with PEFT's save_pretrained")
    checked = {
        module: _checked(module, parts, module in found.embeddings, config, folder)
        for module, parts in found.modules.items()
    }
    return AdapterWeights(checked, found.copies)


class _Tensors:
    """The tensors of an adapter's files, sorted by what they are.

    ``modules``: parts of LoRA by module and part. ``embeddings``: the modules among these that look rows up.
    ``copies``: see `AdapterWeights`.
    """

    def __init__(self, folder: Path, config: AdapterConfig) -> None:
        self._folder = folder
        self._options = {"magnitude": ("use_dora", config.dora), "bias": ("lora_bias", config.bias)}
        self.modules: defaultdict[str, dict[str, torch.Tensor]] = defaultdict(dict)
        self.copies: dict[str, torch.Tensor] = {}
        self.embeddings: set[str] = set()
        self._adapters: set[str] = set()  # named in the keys

    def read(self, path: Path) -> set[str]:
        """Read a file and return its keys."""
        check_tensor_file(path)
        with safe_open(str(path), framework="pt") as tensors:
            mapped = MappedFile(path)
            keys = sorted(tensors.keys())
            for key in keys:
                if not key.isprintable() or len(key) > _MAX_KEY:
                    raise self._unknown(key)
                if _TRAINING_ONLY.fullmatch(key):
                    continue
                shape = mapped.entries[key]["shape"]
                if len(shape) > _MAX_DIMENSIONS or max(shape, default=0) > _MAX_SIZE:
                    raise _bad(self._folder, f"tensor {short_repr(key)} has the shape {short_repr(shape)}")
                tensor = mapped.tensor(key)
                self._add(key, tensors.get_tensor(key) if tensor is None else tensor)
        return set(keys)

    def _add(self, key: str, tensor: torch.Tensor) -> None:
        named = _WRAPPERS.sub("", key)
        if lora := _LORA.fullmatch(named):
            part = _PARTS.get((lora["part"], lora["leaf"]))
            if part is None:
                raise self._unknown(key)
            option, is_on = self._options.get(part, ("", True))
            if not is_on:
                raise _bad(self._folder, f"tensor {short_repr(key)} is there, but {option} is not set in its config")
            self._adapters.add(printable_name(lora["adapter"] or "one without a name"))
            if len(self._adapters) > 1:
                names = ", ".join(sorted(self._adapters))
                raise _bad(self._folder, f"it holds several adapters: {names}; save each with PEFT's save_pretrained")
            if lora["part"].startswith("lora_embedding"):
                self.embeddings.add(lora["module"])
            place, name = self.modules[lora["module"]], part
        elif copy := _COPY.fullmatch(named):
            place, name = self.copies, f"{copy['module']}.{copy['leaf']}"
        else:
            raise self._unknown(key)
        if name in place:
            raise _bad(self._folder, f"tensor {short_repr(key)} repeats one of another name")
        place[name] = tensor

    def _unknown(self, key: str) -> UserError:
        return _bad(self._folder, f"unknown tensor {short_repr(key)}; save the adapter with PEFT's save_pretrained")


def _checked(
    module: str, parts: dict[str, torch.Tensor], embedding: bool, config: AdapterConfig, folder: Path
) -> ModuleWeights:
    for side in "AB":
        if side not in parts:
            raise _bad(folder, f"{module} lacks lora_{side}; copy or save the adapter again")
    for tensor in parts.values():
        if tensor.dtype not in DTYPES.values():
            raise _bad(folder, f"{module} holds {tensor.dtype} values; save it as fp32, fp16 or bf16")
    a, b = parts["A"], parts["B"]
    rank = config.rank(module)
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        shards = not a.numel() or not b.numel() or a.ndim == 1 or b.ndim == 1
        hint = ": DeepSpeed ZeRO-3 or FSDP did not gather the weights before they were saved" if shards else ""
        raise _bad(
            folder, f"{module} has shapes A {list(a.shape)}, B {list(b.shape)}, the config says rank {rank}{hint}"
        )
    needed = {"magnitude": config.dora, "bias": config.bias and not embedding}
    for part, on in needed.items():
        if on and part not in parts:
            raise _bad(folder, f"{module} has no {part} vector, which the config announces")
        if part in parts and parts[part].shape != b.shape[:1]:
            raise _bad(folder, f"{module} has {part} {list(parts[part].shape)} beside B {list(b.shape)}")
    return ModuleWeights(a, b, config.scale(module), parts.get("bias"), parts.get("magnitude"), embedding)


def _bad(folder: Path, what: str) -> UserError:
    return UserError(f"bank: adapter {folder.name!r}: {what} ({folder})")
