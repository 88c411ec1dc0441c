"""Tiny random models, banks and routers, made in the test: real parts, seconds to run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast

from pipeline.adapters import AdapterBank
from pipeline.conversations import PromptSettings
from pipeline.engine import base_shapes
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.routing.router import Router, tokenizer_fingerprint
from pipeline.routing.training import RouterSettings, train_router

WORDS = [f"{kind}{n}" for kind in ("red", "tall", "cold", "loud", "slow", "kind", "dark", "glad") for n in range(6)]
ADAPTERS = ["red", "tall", "cold", "loud", "slow", "kind", "dark", "glad"]
CONTEXT = 256
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def llama_config(**changes: Any) -> PretrainedConfig:
    values = {
        "vocab_size": 640,
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "bos_token_id": None,
        "initializer_range": 0.2,
    }
    return LlamaConfig(**(values | changes))


def gpt2_config() -> PretrainedConfig:
    return GPT2Config(
        vocab_size=640, n_embd=48, n_layer=2, n_head=4, n_positions=CONTEXT, eos_token_id=0, initializer_range=0.2
    )


def make_model(folder: Path, config: PretrainedConfig | None = None) -> Path:
    """A folder with a random model and its tokenizer."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config or llama_config(), dtype=torch.float32)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def make_adapter(folder: Path, shapes: dict[str, tuple[int, int]], rank: int, seed: int, **config: Any) -> None:
    """A PEFT adapter folder with random weights, large enough to change what is generated."""
    torch.manual_seed(seed)
    values = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank, **config}
    patterns = values.get("rank_pattern", {})
    tensors = {}
    for name, (inputs, outputs) in shapes.items():
        r = next((r for pattern, r in patterns.items() if name.endswith(pattern)), rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(r, inputs) * 0.15
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, r) * 0.15
    values["target_modules"] = sorted({name.rsplit(".", 1)[-1] for name in shapes})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file(tensors, folder / "adapter_model.safetensors")


def make_bank(folder: Path, model: Path) -> Path:
    """Eight adapters: ranks 2 to 9, other target modules, rank-stabilised scales, a rank pattern."""
    shapes = base_shapes(AutoModelForCausalLM.from_pretrained(model))
    attention = {n: s for n, s in shapes.items() if n.rsplit(".", 1)[-1] in ("q_proj", "v_proj", "c_attn")}
    ends = ("lm_head", "embed_tokens", "wte", "wpe")
    everything = {n: s for n, s in shapes.items() if not n.endswith(ends)}
    for number, name in enumerate(ADAPTERS):
        targets = everything if number % 3 == 0 else attention
        extra: dict[str, Any] = {"use_rslora": True} if number == 2 else {}
        if number == 4:
            extra = {"rank_pattern": {"v_proj": 3}, "alpha_pattern": {"v_proj": 12}}
        make_adapter(folder / name, targets, rank=2 + number, seed=number, **extra)
    return folder


def prompts_of(adapter: str, count: int, seed: int = 0) -> list[str]:
    """Prompts that a router can tell from those of other adapters."""
    generator = torch.Generator().manual_seed(ADAPTERS.index(adapter) * 1000 + seed)
    places = torch.randint(0, 6, (count, 8), generator=generator).tolist()
    return [" ".join(f"{adapter}{n}" for n in row[: 3 + i % 6]) for i, row in enumerate(places)]


def make_router(folder: Path, model: Path, labels: Sequence[str] = ADAPTERS, prompt_format: str = "raw") -> Path:
    """A trained router for the adapters ``labels``."""
    tokenizer = load_tokenizer(str(model))
    texts = {label: prompts_of(label, 40, seed=1) for label in labels}
    encode = PromptFormat(tokenizer, PromptSettings("raw" if prompt_format == "raw" else "chat")).encode
    prompts = [text for label in labels for text in texts[label]]
    names = [label for label in labels for _ in texts[label]]
    vocabulary = tokenizer.get_vocab()
    card = {"tokenizer_fingerprint": tokenizer_fingerprint(vocabulary), "prompt_format": prompt_format}
    settings = RouterSettings(6, 16, learning_rate=5e-3, held_out=0.1, forms=0, examples=64, seed=0)
    router: Router = train_router(prompts, names, encode, max(vocabulary.values()) + 1, settings, card, print)
    router.save(folder)
    return folder


def load_bank(folder: Path) -> AdapterBank:
    return AdapterBank.load(folder)
