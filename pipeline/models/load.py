"""Load a base model and its tokenizer with transformers, quantised with bitsandbytes if the config says so."""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

from pipeline.errors import UserError, first_names, one_line
from pipeline.untrusted import appearance, check_tensor_file, read_json

from .stored import StoredWeights

Quantization = Literal["none", "8bit", "4bit"]
"""``8bit``: LLM.int8() (arXiv 2208.07339). ``4bit``: NF4 (arXiv 2305.14314)."""

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_TOKENIZER = re.compile(r"tokenizer|vocab|spiece|sentencepiece|tekken|\.tiktoken$")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_dtype(name: str, device: str = "cpu") -> torch.dtype:
    """Return the torch dtype of ``fp32 | bf16 | fp16 | auto``; ``auto`` is bf16 if the hardware computes in it."""
    if name != "auto":
        return _DTYPES[name]
    if device.startswith("cuda"):
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def pick_device(name: str) -> str:
    """Return the torch device of ``cpu | cuda | auto``; ``auto`` is CUDA if there is a GPU."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def load_config(folder: str, trust_remote_code: bool = False) -> Any:
    """Read the transformers config of a model folder or hub id."""
    root = Path(folder)
    if (root / "adapter_config.json").exists():
        raise UserError(f"model: {root} holds adapter_config.json: it is an adapter, not a base model (model.path)")
    if root.is_dir() and not (root / "config.json").exists():
        others = sorted(path.name for path in root.glob("*.gguf"))
        hint = f", but {first_names(others)}: give that file" if others else ": it is no model that transformers saved"
        raise UserError(f"model: {root} has no config.json{hint} (model.path)")
    return _load(folder, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code))


def load_generation_config(folder: str, config: Any) -> Any:
    """Read the generation config of a model folder or hub id; if it has none, derive it from the model's ``config``."""
    try:
        return GenerationConfig.from_pretrained(folder)
    except OSError:
        return GenerationConfig.from_model_config(config)


def check_weights(folder: str) -> None:
    """Raise `UserError` if a model folder lacks weights or has damaged files; hub ids are checked when loaded."""
    root = Path(folder)
    if not root.is_dir():
        return
    files = sorted(root.glob("*.safetensors"))
    if not files:
        raise UserError(f"model: {root} has no *.safetensors; other formats, such as pickle, are not read (model.path)")
    for file in [*files, *(root / name for name in (_INDEX, "generation_config.json") if (root / name).exists())]:
        try:
            if file.suffix == ".json":  # transformers passes over a generation config that it cannot read
                values = read_json(file)
                shards = sorted(set(values.get("weight_map", {}).values())) if file.name == _INDEX else []
                missing = [name for name in shards if not (root / name).exists()]
                if missing:
                    raise ValueError(f"it lists {first_names(missing)}, missing here; copy all files")
                continue
            check_tensor_file(file)
            with safe_open(str(file), framework="pt"):
                pass
        except (OSError, ValueError, AttributeError, TypeError, SafetensorError) as error:
            raise UserError(f"model: {file} cannot be read: {one_line(error)} (model.path)") from None


def load_tokenizer(folder: str, trust_remote_code: bool = False) -> Any:
    """Load the fast tokenizer of a model folder or hub id."""
    root = Path(folder)
    if root.is_dir() and not any(_TOKENIZER.search(path.name) for path in root.iterdir()):
        raise UserError(f"model: {root} has no tokenizer; copy the one of its base model into it (model.path)")
    return _load(folder, lambda: AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code))


def load_model(
    folder: str,
    dtype: str = "auto",
    device: str = "cpu",
    trust_remote_code: bool = False,
    quantization: Quantization = "none",
) -> Any:
    """Load a causal language model for inference: in ``eval`` mode, no gradients, on ``device``, safetensors only.

    ``quantization``: the linear layers except the head in 8 or 4 bits; ``dtype`` is then that of the activations.
    """
    picked = pick_dtype(dtype, device)
    check_quantization(quantization)
    check_stored(folder, load_config(folder, trust_remote_code))
    options: dict[str, Any] = {}
    if quantization != "none":
        config = BitsAndBytesConfig(
            load_in_8bit=quantization == "8bit",
            load_in_4bit=quantization == "4bit",
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=picked,
        )
        options = {"quantization_config": config, "device_map": device}
    model, report = _load(
        folder,
        lambda: AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=picked,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **options,
        ),
    )
    if missing := sorted(report["missing_keys"]):  # transformers makes them up
        raise UserError(f"model: {folder} lacks the weights {first_names(missing)}; save or copy it again (model.path)")
    if not options:  # quantised models are loaded onto the device, and bitsandbytes refuses to move them
        model.to(device)
    return model.eval().requires_grad_(False)


def load_token_embeddings(folder: str, trust_remote_code: bool = False) -> torch.Tensor:
    """Read the input embedding [tokens x hidden] of a model folder in fp32, and none of its other weights."""
    skeleton = load_skeleton(load_config(folder, trust_remote_code), trust_remote_code)
    wanted = skeleton.get_input_embeddings().weight
    name = next(name for name, parameter in skeleton.named_parameters() if parameter is wanted)
    check_weights(folder)
    found = StoredWeights(folder, skeleton).get(name)
    if found is None or found.is_meta:
        raise UserError(f"model: {folder} has no safetensors with the weight {name} (model.path)")
    return found.float()


def load_skeleton(config: Any, trust_remote_code: bool = False) -> Any:
    """Build the model of a transformers config with all its layers and no weights, on torch's meta device."""
    with torch.device("meta"):
        return _load(
            config.name_or_path,
            lambda: AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code),
        )


def check_quantization(quantization: Quantization) -> None:
    """Raise `UserError` if quantization is wanted and bitsandbytes is not installed."""
    if quantization != "none" and find_spec("bitsandbytes") is None:
        raise UserError(
            f"config: model.quantization={quantization} needs the package bitsandbytes: pip install loraloom[quantized]"
        )


def check_stored(folder: str, config: Any) -> None:
    """Raise `UserError` for a model whose files transformers does not load, or not into layers that are known here."""
    root = Path(folder)
    if root.is_dir() and not any((root / name).exists() for name in (_WEIGHTS, _INDEX)):
        raise UserError(f"model: {root} has neither {_WEIGHTS} nor shards with their {_INDEX}; copy all files")
    stored = getattr(config, "quantization_config", None) or {}
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    if stored and method != "bitsandbytes":
        raise UserError(
            f"model: {folder} is stored quantised with {method}, which engine=native does not take; give its"
            " unquantised weights, with model.quantization=8bit or 4bit if they are too large (model.path)"
        )


def _load(folder: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # for a damaged folder, each library raises its own exceptions
        files = sorted(Path(folder).glob("*.json")) if folder else []
        seems = next(filter(None, map(_seems, files)), "")
        problem = seems or f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"model: cannot load {folder}: {problem}") from error


def _seems(path: Path) -> str:
    """Name a JSON file that seems to be something else, and say what; empty if it does not."""
    with path.open("rb") as f:
        seems = appearance(f.read(2**10))
    return f"{path.name}: {seems}" if seems else ""
