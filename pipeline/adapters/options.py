"""The options of PEFT's `LoraConfig`: what inference needs, what leaves it alone, and what is refused and why.

Checked against PEFT 0.21.2: `tests/adapters/test_peft_options.py` makes an adapter with each option.
"""

from typing import Any

from pipeline.untrusted import printable_name, short_repr

_USED = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias"),
    *("peft_type", "init_lora_weights"),
}
# Weights of the base model that training may have changed are saved as copies, which are compared (`copies.py`):
# these options say only which.
_COPIES = {"bias", "modules_to_save", "ensure_weight_tying"}
_BIASES = (None, "none", "all", "lora_only")
_HARMLESS = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "lora_dropout"),
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"),
    *("megatron_core", "qalora_group_size", "runtime_config"),
    # Of an initialisation: `init_lora_weights` decides.
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
    # Of training: at inference the layer is B A x.
    *("velora_config", "monteclora_config"),
}
_REFUSED = {
    "trainable_token_indices": "trains rows of an embedding, which no mixture can hold; retrain without it",
    "target_parameters": "changes parameters that are no layer, as in experts; retrain with target_modules",
    "layer_replication": (
        "repeats layers of the base model; save the model with its repeated layers, name it as model.path, and set the"
        " option to null"
    ),
    "alora_invocation_tokens": "switches the adapter on in the middle of a prompt; retrain without it",
    "use_qalora": "averages the inputs of A in groups; retrain without it",
    "use_bdlora": "saves the blocks of A or B instead of the matrix; retrain without it",
    "kasa_config": "cuts singular values off the base weights; retrain without it",
    "arrow_config": "chooses among adapters itself; give these adapters and a router",
    "megatron_config": "belongs to Megatron's layers; save the adapter from the transformers model",
}
_UNKNOWN = "is unknown here and may change what the adapter computes; retrain without it"
_UNSET: tuple[Any, ...] = (None, False, "none", [], {})

# Initialisations of A and B that leave the base weights as they are. PEFT ignores the case of some.
_NEUTRAL_INITS = ("gaussian", "orthogonal", "eva", "mica")
# PEFT subtracts B A of these from the base weights before training.
_SUBTRACTED_INITS = ("pissa", "olora", "corda", "lora_ga")
_TRUE_INIT = "set init_lora_weights to true in adapter_config.json if model.path is the changed base model"


def problems(values: dict[str, Any]) -> list[str]:
    """Return what in an `adapter_config.json` cannot be computed exactly, each with the reason and what to do."""
    if str(values.get("peft_type")).upper() != "LORA":
        return [_not_lora(values.get("peft_type"))]
    found = []
    for key in sorted(set(values) - _USED - _COPIES - _HARMLESS):
        if values[key] not in _UNSET:
            value = "" if isinstance(values[key], dict) else f"={short_repr(values[key])}"
            found.append(f"{printable_name(key)}{value} {_REFUSED.get(key, _UNKNOWN)}")
    if values.get("bias") not in _BIASES:
        found.append(f"bias={short_repr(values['bias'])} {_UNKNOWN}")
    if values.get("use_dora") and values.get("lora_bias"):
        found.append("use_dora with lora_bias is undefined (PEFT counts the bias into the norm); retrain with one")
    init = values.get("init_lora_weights", True)
    if not (init in (True, False, None) or (isinstance(init, str) and init.lower() in _NEUTRAL_INITS)):
        found.append(f"init_lora_weights={short_repr(init)} {_init_problem(init)}")
    return found


def _not_lora(kind: object) -> str:
    if kind is None:
        return "adapter_config.json has no peft_type, so PEFT did not write it; export the adapter in PEFT's format"
    return (
        f"peft_type={short_repr(kind)} is another method than LoRA; retrain it as LoRA, or approximate it with PEFT's"
        " save_as_lora if the method allows that"
    )


def _init_problem(init: object) -> str:
    name = init.lower() if isinstance(init, str) else ""
    if name.startswith(_SUBTRACTED_INITS):
        return (
            "changes the base weights; save it as plain LoRA with"
            f" save_pretrained(path_initial_model_for_weight_conversion=...), or {_TRUE_INIT}"
        )
    if name == "loftq":
        return f"changes the base weights, which LoftQ quantises; save those as a model, and {_TRUE_INIT}"
    return "is unknown here and may change the base weights; retrain without it"
