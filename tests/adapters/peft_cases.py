"""Adapters as people bring them: made with PEFT on a tiny random model, with each option, and saved in several ways."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import replicate_layers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen2Config

from tests import tiny
from tests.adapters.make import LFS_POINTER

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
BASES = {
    "llama": tiny.llama_config(**SIZES),
    "tied": tiny.llama_config(**SIZES, tie_word_embeddings=True),
    "biases": Qwen2Config(**SIZES, initializer_range=0.2),
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OPTIONS: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def make_base(folder: Path, kind: str) -> Path:
    """Save a random model."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(BASES[kind], dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


def save(model: Any, folder: Path) -> None:
    """Save as PEFT's users do."""
    model.save_pretrained(folder)


def nothing(*arguments: Any) -> None:
    """Change nothing."""


@dataclass(frozen=True)
class Case:
    """One adapter. ``name``: for the table of the docs.

    ``options``: of `LoraConfig`. ``base``: of `BASES`. ``refused``: what a refusal names; empty if the adapter is
    taken. ``prepare``: changes the model before PEFT wraps it, and gets the config. ``trained``: the parts of names of
    the parameters that training changes. ``save``: writes the adapter's folder. ``edit``: changes it then. ``rebase``:
    the base model is saved as it is after training, and this becomes model.path.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    base: str = "llama"
    refused: str = ""
    prepare: Callable[[Any, Any], None] = nothing
    trained: str = "lora_"
    save: Callable[[Any, Path], None] = save
    edit: Callable[[Path], None] = nothing
    rebase: bool = False


def make(case: Case, base: Path, folder: Path) -> tuple[torch.Tensor, Path]:
    """Write the adapter of a case to a folder; returns PEFT's own logits with it, and the folder of its base model."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    config = peft.LoraConfig(**(OPTIONS | case.options))
    case.prepare(model, config)
    wrapped = peft.get_peft_model(model, config)
    if config.init_lora_weights == "eva":
        peft.initialize_lora_eva_weights(wrapped, [_batch()] * 3)
    if case.save is converted:
        wrapped.save_pretrained(folder.parent.parent / "init")
    generator = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if case.trained in name and parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    wrapped.eval()
    with torch.no_grad():
        logits = wrapped(input_ids=TOKENS).logits[0]
    case.save(wrapped, folder)
    case.edit(folder)
    if case.rebase:
        base = folder.parent.parent / "changed"
        wrapped.unload().save_pretrained(base)
    return logits, base


def _batch(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), **more}


def corda(model: Any, config: Any) -> None:
    """Run CorDA's preprocessing."""
    preprocess_corda(model, config, run_model=lambda: model(**_batch()))


def lora_ga(model: Any, config: Any) -> None:
    """Run LoRA-GA's preprocessing."""
    preprocess_loraga(model, config, lambda: model(**_batch(labels=TOKENS)).loss.backward())


def resized(model: Any, config: Any) -> None:
    """Add eight tokens to the vocabulary."""
    model.resize_token_embeddings(48, mean_resizing=False)


def repeated(model: Any, config: Any) -> None:
    """Repeat the last layer, with weights of its own."""
    replicate_layers(model, [[0, 2], [1, 2]])
    for parameters in [module._parameters for module in model.model.layers[-1].modules()]:
        parameters |= {name: torch.nn.Parameter(p.data.clone()) for name, p in parameters.items() if p is not None}


def converted(model: Any, folder: Path) -> None:
    """Save as plain LoRA, by the difference to the adapter before training."""
    initial = folder.parent.parent / "init"
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(initial))


def with_embeddings(model: Any, folder: Path) -> None:
    """Save with embedding and head."""
    model.save_pretrained(folder, save_embedding_layers=True)


def state_dict(model: Any, folder: Path) -> None:
    """Save the config, and by hand the tensors of LoRA."""
    model.peft_config["default"].save_pretrained(folder)
    tensors = {key: tensor for key, tensor in model.state_dict().items() if "lora_" in key}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / WEIGHTS)


def injected(model: Any, folder: Path) -> None:
    """Save the keys as an injected adapter has them (`peft.inject_adapter_in_model`)."""
    model.save_pretrained(folder)
    rewrite(lambda tensors: {key.removeprefix("base_model.model."): t for key, t in tensors.items()})(folder)


def rewrite(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    """Return a function that changes the tensors of an adapter's folder."""

    def edit(folder: Path) -> None:
        tensors = change(load_file(folder / WEIGHTS))
        save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / WEIGHTS)

    return edit


def set_config(**values: Any) -> Callable[[Path], None]:
    """Return a function that sets options in an adapter's config, which PEFT itself needs more for; None removes."""

    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text()) | values
        (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return edit


def sharded(index: bool) -> Callable[[Path], None]:
    """Return a function that splits an adapter's tensors over two files."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = [f"adapter_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
        shards = {key: names[number % 2] for number, key in enumerate(sorted(tensors))}
        for name in names:
            save_file({key: tensors[key] for key, shard in shards.items() if shard == name}, folder / name)
        if index:
            (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))

    return edit


def pointer(folder: Path) -> None:
    """Put a Git LFS pointer in the place of the weights."""
    (folder / WEIGHTS).write_text(LFS_POINTER)


def pickled(model: Any, folder: Path) -> None:
    """Save as PEFT did before safetensors."""
    model.save_pretrained(folder, safe_serialization=False)


def checkpoint(model: Any, folder: Path) -> None:
    """Save below the output folder of a trainer."""
    model.save_pretrained(folder / "checkpoint-500")


def renamed(folder: Path) -> None:
    """Name the weights as other tools do."""
    (folder / WEIGHTS).rename(folder / "model.safetensors")


def second_adapter(model: Any, folder: Path) -> None:
    """Save two adapters in one file."""
    state_dict(model, folder)
    rewrite(lambda t: t | {key.replace(".default.", ".legal."): value for key, value in t.items()})(folder)


INITS = ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga")
PREPARE: dict[str, Callable[[Any, Any], None]] = {"corda": corda, "lora_ga": lora_ga}


def _init(name: str) -> dict[str, Any]:
    from peft.tuners.lora.config import LoraGAConfig

    return {"init_lora_weights": name, **({"lora_ga_config": LoraGAConfig()} if name == "lora_ga" else {})}


def _variants() -> dict[str, Any]:
    from peft.tuners.lora import config

    blocks = config.BdLoraConfig(target_modules_bd_a=["q_proj"], target_modules_bd_b=["v_proj"], nblocks=2)
    return {
        "velora_config": config.VeloraConfig(num_groups=2),
        "monteclora_config": config.MontecloraConfig(),
        "kasa_config": config.KasaConfig(),
        "use_bdlora": blocks,
    }


VARIANTS = _variants()
CASES = [
    Case('`target_modules="all-linear"`', {"target_modules": "all-linear"}),
    Case("`exclude_modules`, `layers_to_transform`", {"exclude_modules": ["v_proj"], "layers_to_transform": [1]}),
    Case(
        "`rank_pattern`, `alpha_pattern`, `use_rslora`",
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.1\..*v_proj": 3}, "use_rslora": True},
    ),
    Case("`use_dora`", {"use_dora": True}),
    Case("`lora_bias`", {"lora_bias": True}),
    Case("`use_dora` and `lora_bias`", refused="undefined", edit=set_config(use_dora=True, lora_bias=True)),
    Case("embedding and head as targets", {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    Case("`ensure_weight_tying`", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}, "tied"),
    *(
        Case(f"`init_lora_weights={value!r}`", {"init_lora_weights": value})
        for value in (True, False, "gaussian", "orthogonal", "eva", "mica")
    ),
    *(
        Case(
            f"`init_lora_weights={value!r}`",
            _init(value),
            refused="changes the base",
            prepare=PREPARE.get(value, nothing),
        )
        for value in INITS
    ),
    *(
        Case(
            f"{value}, saved with `path_initial_model_for_weight_conversion`",
            _init(value),
            prepare=PREPARE.get(value, nothing),
            save=converted,
        )
        for value in INITS
    ),
    Case(
        "pissa, `init_lora_weights` set to true, the changed base as `model.path`",
        _init("pissa"),
        edit=set_config(init_lora_weights=True),
        rebase=True,
    ),
    Case("`init_lora_weights='loftq'`", refused="LoftQ quantises", edit=set_config(init_lora_weights="loftq")),
    Case("`velora_config`", {"velora_config": VARIANTS["velora_config"]}),
    Case("`monteclora_config`", {"monteclora_config": VARIANTS["monteclora_config"]}),
    Case("`kasa_config`", {"kasa_config": VARIANTS["kasa_config"]}, refused="singular values"),
    Case("`use_bdlora`", {"use_bdlora": VARIANTS["use_bdlora"]}, refused="blocks"),
    Case("`use_qalora`", refused="averages", edit=set_config(use_qalora=True)),
    Case("`arrow_config`", refused="chooses among adapters", edit=set_config(arrow_config={"top_k": 2})),
    Case("`megatron_config`", refused="Megatron", edit=set_config(megatron_config={"a": 1})),
    Case("`alora_invocation_tokens`", {"alora_invocation_tokens": [5]}, refused="switches the adapter on"),
    Case("`layer_replication`", {"layer_replication": [[0, 2], [1, 2]]}, refused="repeats layers"),
    Case(
        "an adapter on repeated layers, the model with these as `model.path`",
        prepare=repeated,
        rebase=True,
    ),
    Case(
        "`target_parameters`", {"target_parameters": ["mlp.gate_proj.weight"]}, refused="parameters that are no layer"
    ),
    Case("`trainable_token_indices`", {"trainable_token_indices": [1, 2]}, refused="rows of an embedding"),
    Case("an option of a later PEFT", refused="unknown here", edit=set_config(use_later=True)),
    Case('`bias="all"`, the model has no biases', {"bias": "all"}),
    Case('`bias="all"`, biases as in the base model', {"bias": "all"}, "biases"),
    Case('`bias="all"`, changed biases', {"bias": "all"}, "biases", "training changed it", trained=""),
    Case('`bias="lora_only"`, changed biases', {"bias": "lora_only"}, "biases", "training changed it", trained=""),
    Case("`modules_to_save`, as in the base model", {"modules_to_save": ["lm_head", "norm"]}),
    Case("`modules_to_save`, changed", {"modules_to_save": ["lm_head"]}, refused="training changed it", trained=""),
    Case("`save_embedding_layers`, as in the base model", save=with_embeddings),
    Case("`save_embedding_layers`, tied, as in the base model", base="tied", save=with_embeddings),
    Case("a resized vocabulary", refused="vocabulary of 48 tokens", prepare=resized, save=with_embeddings),
    Case("a resized vocabulary, its model as `model.path`", prepare=resized, save=with_embeddings, rebase=True),
    Case(
        "a resized vocabulary, the embedding as target",
        {"target_modules": ["q_proj", "embed_tokens"]},
        refused="vocabulary of 48 tokens",
        prepare=resized,
    ),
    Case("no `peft_type`, as other tools write it", refused="no peft_type", edit=set_config(peft_type=None)),
    Case("shards with their index", edit=sharded(True)),
    Case("shards without their index", refused="without their index", edit=sharded(False)),
    Case("a state dict with the adapter's name in its keys", save=state_dict),
    Case("a state dict of two adapters", refused="several adapters: default, legal", save=second_adapter),
    Case("keys without `base_model.model.`", save=injected),
    Case(
        "shards of ZeRO-3 or FSDP that were not gathered",
        refused="did not gather",
        edit=rewrite(lambda tensors: {key: tensor[:0] for key, tensor in tensors.items()}),
    ),
    Case("pickle", refused="pickle", save=pickled),
    Case("weights of another name", refused="rename", edit=renamed),
    Case("a Git LFS pointer", refused="git lfs pull", edit=pointer),
    Case("the output folder of a trainer", refused="checkpoint-500", save=checkpoint),
]


def others() -> dict[str, Any]:
    """Return the configs of PEFT's other methods, by the name that their adapters' configs have."""
    one: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    prompt: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    configs = [
        peft.AdaLoraConfig(**one, total_step=10),
        peft.IA3Config(**one, feedforward_modules=[]),
        peft.VeraConfig(**one, r=4),
        peft.LoHaConfig(**one),
        peft.LoKrConfig(**one),
        peft.OFTConfig(**one, r=0, oft_block_size=4),
        peft.LNTuningConfig(task_type="CAUSAL_LM"),
        peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[1]),
        peft.PrefixTuningConfig(**prompt),
        peft.PromptTuningConfig(**prompt),
        peft.PromptEncoderConfig(**prompt),
    ]
    return {config.peft_type.value: config for config in configs}
