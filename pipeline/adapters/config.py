"""`adapter_config.json` of PEFT: what is used of it, and what is refused by name."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

# Keys that inference uses, and keys that leave the maths of the saved tensors as it is. Any other key, today's or a
# later PEFT's, may change it (modules_to_save, target_parameters, layer_replication, ...), so it must be unset.
_USED = {
    *("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora", "lora_bias"),
    *("peft_type", "init_lora_weights"),
}
_HARMLESS = {
    *(
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "fan_in_fan_out",
        "lora_dropout",
    ),
    *("task_type", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"),
    *("megatron_core", "qalora_group_size", "loftq_config", "runtime_config"),
}
_UNSET: tuple[Any, ...] = (None, False, "none", [], {})
# Initialisations that change the base weights: the adapter then fits no unchanged base model.
_NEUTRAL_INITS = (True, False, None, "gaussian", "orthogonal")


CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def is_adapter_name(name: object) -> bool:
    """Whether a name can be that of an adapter, whose folder in the bank has it: no path, not hidden."""
    return isinstance(name, str) and re.fullmatch(r"[^/\\\0.][^/\\\0]*", name) is not None


@dataclass(frozen=True)
class AdapterConfig:
    """Rank and scale of each module of one adapter (PEFT's `LoraConfig`, as far as inference needs it).

    ``dora``: weight-decomposed (arXiv 2402.09353). ``bias``: lora_B has a bias, scaled as B A x is.
    """

    r: int
    alpha: float
    rslora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    dora: bool = False
    bias: bool = False

    def rank(self, module: str) -> int:
        """Rank at a module; `rank_pattern` overrules `r`."""
        return int(_by_pattern(self.rank_pattern, module, self.r))

    def scale(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (arXiv 2312.03732)."""
        alpha, rank = float(_by_pattern(self.alpha_pattern, module, self.alpha)), self.rank(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Read and check the config in an adapter's folder; `UserError` for what cannot be done exactly."""
    name = folder.name
    try:
        values = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"bank: adapter {name!r}: cannot read adapter_config.json: {error} ({folder})") from None
    if not isinstance(values, dict):
        raise UserError(f"bank: adapter {name!r}: adapter_config.json is not a JSON object ({folder})")
    _refuse_other_maths(values, name, folder)
    try:
        config = AdapterConfig(
            r=int(values["r"]),
            alpha=float(values["lora_alpha"]),
            rslora=bool(values.get("use_rslora")),
            rank_pattern={str(k): int(v) for k, v in (values.get("rank_pattern") or {}).items()},
            alpha_pattern={str(k): float(v) for k, v in (values.get("alpha_pattern") or {}).items()},
            dora=bool(values.get("use_dora")),
            bias=bool(values.get("lora_bias")),
        )
        patterns = [*config.rank_pattern, *config.alpha_pattern]
        for pattern in patterns:
            _matcher(pattern)
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise UserError(f"bank: adapter {name!r}: bad adapter_config.json: {error!r} ({folder})") from None
    if min([config.r, *config.rank_pattern.values()]) < 1:
        raise UserError(f"bank: adapter {name!r}: a rank below 1 in adapter_config.json ({folder})")
    if not all(map(math.isfinite, [config.alpha, *config.alpha_pattern.values()])):
        raise UserError(f"bank: adapter {name!r}: an alpha that is no finite number in adapter_config.json ({folder})")
    return config


def _refuse_other_maths(values: dict[str, Any], name: str, folder: Path) -> None:
    others = sorted(set(values) - _USED - _HARMLESS)
    refused = [f"{key}={values[key]!r}" for key in others if values[key] not in _UNSET]
    if values.get("use_dora") and values.get("lora_bias"):
        refused.append("use_dora with lora_bias (PEFT counts the bias into the norm)")
    if values.get("peft_type") != "LORA":
        refused.append(f"peft_type={values.get('peft_type')!r}")
    if values.get("init_lora_weights") not in _NEUTRAL_INITS:
        refused.append(f"init_lora_weights={values['init_lora_weights']!r} (it changes the base weights)")
    if refused:
        raise UserError(
            f"bank: adapter {name!r} uses {', '.join(refused)}, which the fused operator does not compute exactly;"
            f" retrain or convert it as LoRA without that ({folder})"
        )


def _by_pattern(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: a key is a regular expression that matches the whole name or its end after a dot."""
    for key, value in pattern.items():
        if _matcher(key).match(module):
            return value
    return default


def _matcher(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")
