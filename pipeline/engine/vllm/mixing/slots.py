"""The adapters of a bank in vLLM's LoRA slots, and the weights of the tokens of each forward pass."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.config import CompilationMode, CUDAGraphMode
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from pipeline.adapters import AdapterBank

from .codec import KEY, TokenMixtures
from .products import SlotProducts, TokenWeights


def mixing_config(bank: AdapterBank) -> dict[str, Any]:
    """Return the `additional_config` of an engine that mixes the adapters of a bank."""
    return {KEY: {"bank": str(bank.folder.absolute()), "adapters": bank.names, "modules": bank.modules}}


def mixes(vllm_config: Any) -> bool:
    """Whether an engine was started with `mixing_config`."""
    config = vllm_config.additional_config
    return isinstance(config, dict) and KEY in config


def adapter_request(number: int, name: str) -> Any:
    """Return vLLM's request to load an adapter of the bank, which `MixtureManager` reads by its number.

    No such folder exists: an engine without `MixtureManager` fails here, instead of ignoring mixtures later.
    """
    return LoRARequest(name, number, f"/bank/{number}")


class MixtureLayers(LRUCacheLoRAModelManager):  # type: ignore[misc]
    """vLLM's LoRA layers and slots, with `SlotProducts` instead of its own operators."""

    def __init__(self, *args: Any, vllm_config: Any, **kwargs: Any) -> None:
        compilation = vllm_config.compilation_config
        padded = compilation.cudagraph_capture_sizes or [0]
        self.weights = TokenWeights(
            max_tokens=max(vllm_config.scheduler_config.max_num_batched_tokens, *padded),
            slots=vllm_config.lora_config.max_loras,
            device=kwargs["device"],
            is_eager=compilation.mode == CompilationMode.NONE and compilation.cudagraph_mode == CUDAGraphMode.NONE,
        )
        self._adapted = set(vllm_names(kwargs["model"], vllm_config.additional_config[KEY]["modules"]))
        self._products: dict[str, SlotProducts] = {}
        super().__init__(*args, vllm_config=vllm_config, **kwargs)  # registers the layers
        for name, products in self._products.items():
            self.modules[name].set_mapping(products)

    def register_module(self, module_name: str, module: Any) -> None:
        """Register an adapted layer, with room for the adapters only in the slices that some adapter changes."""
        if not isinstance(module, BaseLinearLayerWithLoRA):
            raise ValueError(f"{module_name} is not a linear layer in vLLM; use engine=native")
        super().register_module(module_name, module)
        prefix, _, last = module_name.rpartition(".")
        parts = self.packed_modules_mapping.get(last, [])
        names = [f"{prefix}.{part}" for part in parts] if len(parts) == module.n_slices else [module_name]
        used = [name in self._adapted for name in names]
        a = module.lora_a_stacked[0]
        products = SlotProducts(
            self.weights,
            rank=a.shape[2],
            inputs=a.shape[3],
            widths=module.output_slices,
            used=used if len(used) == module.n_slices else [any(used)] * module.n_slices,
            like=a,
        )
        module.lora_a_stacked, module.lora_b_stacked = products.slot_a, products.slot_b
        self._products[module_name] = products

    def activate_adapter(self, lora_id: int) -> bool:
        """Write an adapter into a slot, unless it is in one."""
        is_new: bool = super().activate_adapter(lora_id)
        if is_new:
            self.weights.slots_changed()
        return is_new

    def check_modules(self, names: Iterable[str]) -> None:
        """Raise `ValueError` for a module of an adapter that no layer computes: vLLM would ignore it."""
        packed = {part for parts in self.packed_modules.values() for part in parts}
        for name in names:
            if name not in self.modules and name not in packed:
                raise ValueError(f"vLLM applies no adapter to {name} of this model; use engine=native")


class MixtureManager(LRUCacheWorkerLoRAManager):  # type: ignore[misc]
    """Loads the adapters that the tokens of a forward pass need, and sets their weights."""

    _manager_cls = MixtureLayers
    _adapter_manager: MixtureLayers

    def __init__(self, vllm_config: Any, device: torch.device, embedding_modules: Any) -> None:
        if vllm_config.use_v2_model_runner:
            raise ValueError("mixtures need vLLM's first model runner: set VLLM_USE_V2_MODEL_RUNNER=0")
        super().__init__(vllm_config, device, embedding_modules)
        config = vllm_config.additional_config[KEY]
        self._bank, self._names = Path(config["bank"]), config["adapters"]

    def set_batch(self, requests: Sequence[tuple[TokenMixtures, int, int]]) -> None:
        """Set the mixtures of the tokens of the next forward pass.

        ``requests``: in the order of the batch, each request's mixtures, the index of its first token that runs, and
        their number.
        """
        self._hold({number for mixtures, _, _ in requests for number in mixtures.adapters})
        layers = self._adapter_manager
        slots = {number: slot for slot, number in enumerate(layers.lora_index_to_id) if number is not None}
        rows = np.zeros((sum(count for _, _, count in requests), layers.lora_slots), np.float32)
        row = 0
        for mixtures, first, count in requests:
            for start, end, weights in mixtures.within(first, first + count):
                for number, weight in weights:
                    rows[row + start - first : row + end - first, slots[number]] = weight
            row += count
        layers.weights.set_rows(torch.from_numpy(rows))

    def _hold(self, needed: set[int]) -> None:
        """Bring adapters into slots, in the place of those that were needed longest ago."""
        layers = self._adapter_manager
        if len(needed) > layers.lora_slots:
            raise RuntimeError(f"a batch needs {len(needed)} adapters, and there are {layers.lora_slots} slots")
        there = set(layers.lora_index_to_id)
        if not needed <= there:
            # Those that are there first: then they are the ones used last, and no other takes their slots.
            for number in sorted(needed, key=lambda number: number not in there):
                self.add_adapter(adapter_request(number, self._names[number - 1]))

    def _load_adapter(self, lora_request: Any) -> Any:
        """Read an adapter with the checks of the bank's own reader; its scale goes into B, rounded once."""
        layers, dtype = self._adapter_manager, self.lora_config.lora_dtype
        name = self._names[lora_request.lora_int_id - 1]
        modules = AdapterBank.load(self._bank, [name]).adapters[name].modules
        loras = {}
        for module, own in zip(vllm_names(layers.model, modules), modules.values(), strict=True):
            b = (own.B.double() * own.scale).to(dtype)
            loras[module] = LoRALayerWeights(module, own.rank, own.rank, own.A.to(dtype), b)
        layers.check_modules(loras)
        return LoRAModel(lora_request.lora_int_id, max(lora.rank for lora in loras.values()), loras)

    def set_active_adapters(self, requests: set[Any], mapping: Any) -> None:
        """Do nothing: vLLM calls this with made-up adapters when it warms up, and layers need none for that."""

    def add_dummy_lora(self, lora_request: Any, rank: int) -> bool:
        """Load nothing; see `set_active_adapters`."""
        return False


def vllm_names(model: Any, modules: Iterable[str]) -> list[str]:
    """Return the names that vLLM's model has for modules of the transformers model."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    renames = mapper.get_rename_mapper() if mapper is not None else None
    return [parse_fine_tuned_lora_name(f"base_model.model.{module}.lora_A.weight", renames)[0] for module in modules]
