"""The plugin that vLLM loads in each of its processes, and the check that this version of vLLM has what it changes."""

import inspect
from functools import wraps
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pipeline.errors import UserError

GROUP, NAME = "vllm.general_plugins", "loraloom"
_MIXIN = "vllm.v1.worker.lora_model_runner_mixin"
_MANAGER = "vllm.lora.worker_manager:LRUCacheWorkerLoRAManager"

# What the plugin replaces, overrides, calls or takes the place of, with the first parameters of each.
_HOOKS = {
    f"{_MIXIN}:LRUCacheWorkerLoRAManager": (),
    f"{_MIXIN}:LoRAModelRunnerMixin.set_active_loras": (
        *("self", "input_batch", "num_scheduled_tokens", "num_sampled_tokens", "mapping_type"),
    ),
    f"{_MANAGER}.__init__": ("self", "vllm_config", "device", "embedding_modules"),
    f"{_MANAGER}.set_active_adapters": ("self", "requests", "mapping"),
    f"{_MANAGER}.add_dummy_lora": ("self", "lora_request", "rank"),
    f"{_MANAGER}.add_adapter": ("self", "lora_request"),
    f"{_MANAGER}._load_adapter": ("self", "lora_request"),
    "vllm.lora.model_manager:LRUCacheLoRAModelManager.register_module": ("self", "module_name", "module"),
    "vllm.lora.model_manager:LRUCacheLoRAModelManager.activate_adapter": ("self", "lora_id"),
    "vllm.lora.model_manager:LoRAModelManager.lora_slots": (),
    "vllm.v1.worker.gpu_input_batch:InputBatch.req_ids": (),
    "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA.set_mapping": ("self", "punica_wrapper"),
    "vllm.lora.punica_wrapper.punica_base:PunicaWrapperBase.add_lora_linear": (
        *("self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale", "output_slices"),
    ),
    "vllm.lora.lora_model:LoRAModel.__init__": ("self", "lora_model_id", "rank", "loras"),
    "vllm.lora.lora_weights:LoRALayerWeights.__init__": (
        *("self", "module_name", "rank", "lora_alpha", "lora_a", "lora_b"),
    ),
    "vllm.lora.request:LoRARequest": (),
    "vllm.lora.utils:parse_fine_tuned_lora_name": ("name", "weights_mapper"),
    "vllm.config:CompilationMode": (),
    "vllm.config:CUDAGraphMode": (),
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler": (),
    "vllm.v1.core.sched.scheduler:Scheduler._handle_blocked_waiting_request": ("self", "request"),
    "vllm.inputs:tokens_input": ("prompt_token_ids",),
}
# Attributes of objects that it reads, by the functions that set them.
_ATTRIBUTES = {
    "vllm.v1.worker.gpu_input_batch:InputBatch.__init__": ("num_computed_tokens_cpu",),
    "vllm.v1.core.sched.scheduler:Scheduler.__init__": ("running", "lora_config"),
    "vllm.lora.model_manager:LoRAModelManager.__init__": (
        *("lora_index_to_id", "modules", "packed_modules", "packed_modules_mapping"),
    ),
    "vllm.lora.layers.base_linear:BaseLinearLayerWithLoRA.create_lora_weights": (
        *("lora_a_stacked", "lora_b_stacked", "output_slices"),
    ),
}


def register() -> None:
    """Make engines that were started with `slots.mixing_config` mix adapters; others stay as they are.

    vLLM calls it once or more in each process. A version of vLLM that lacks a hook is left alone: `check_plugin`
    refuses it before an engine starts.
    """
    if hook_problem():
        return
    mixin: Any = import_module(_MIXIN)
    if getattr(mixin, "_mixes_adapters", False):
        return
    from .codec import mixtures_of
    from .slots import MixtureManager, mixes

    plain_manager, set_plain = mixin.LRUCacheWorkerLoRAManager, mixin.LoRAModelRunnerMixin.set_active_loras

    def create_manager(vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        return (MixtureManager if mixes(vllm_config) else plain_manager)(vllm_config, *args, **kwargs)

    @wraps(set_plain)
    def set_active_loras(runner: Any, input_batch: Any, num_scheduled_tokens: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(runner.lora_manager, MixtureManager):
            set_plain(runner, input_batch, num_scheduled_tokens, *args, **kwargs)
            return
        mixtures = (mixtures_of(runner.requests[name].sampling_params) for name in input_batch.req_ids)
        counts = num_scheduled_tokens.tolist()
        first = input_batch.num_computed_tokens_cpu[: len(counts)].tolist()
        runner.lora_manager.set_batch(list(zip(mixtures, first, counts, strict=True)))

    mixin.LRUCacheWorkerLoRAManager = create_manager
    mixin.LoRAModelRunnerMixin.set_active_loras = set_active_loras
    mixin._mixes_adapters = True


def check_plugin() -> None:
    """Raise `UserError` if vLLM would not load the plugin, or if this version of vLLM lacks one of its hooks."""
    from vllm import __version__, envs

    found = {point.name for point in entry_points(group=GROUP)}
    if NAME not in found or (envs.VLLM_PLUGINS is not None and NAME not in envs.VLLM_PLUGINS):
        raise UserError(
            f"engine=vllm: vLLM does not load the plugin {NAME}: install this package with pip, and name {NAME} in"
            " VLLM_PLUGINS if it is set"
        )
    problem = hook_problem()
    if problem:
        raise UserError(f"engine=vllm: vLLM {__version__} does not fit: {problem}; install vllm>=0.32,<0.33")


def hook_problem() -> str:
    """Return what this version of vLLM lacks; empty if the plugin fits."""
    for path in (*_HOOKS, *_ATTRIBUTES):
        module, _, names = path.partition(":")
        try:
            hook: Any = import_module(module)
            for name in names.split("."):
                hook = getattr(hook, name)
        except (ImportError, AttributeError):
            return f"it has no {path}"
        parameters = _HOOKS.get(path, ())
        found = tuple(inspect.signature(hook).parameters) if parameters else ()
        if found[: len(parameters)] != parameters:
            return f"{path} takes {', '.join(found)}"
        missing = set(_ATTRIBUTES.get(path, ())) - set(hook.__code__.co_names if path in _ATTRIBUTES else ())
        if missing:
            return f"{path} does not set {', '.join(sorted(missing))}"
    return ""
