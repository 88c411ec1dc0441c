"""Model families with adapters that PEFT made and saved: against PEFT itself and against merged weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from pipeline.adapters import AdapterBank
from pipeline.engine import FusedLora, LoraSettings
from pipeline.engine.settings import LoraMode
from pipeline.errors import UserError
from pipeline.models import load_model
from pipeline.records import Mixture
from tests import tiny
from tests.engine.reference import assert_close, logits_of, merged

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": None,
}


@dataclass(frozen=True)
class Family:
    """``split``: layers of attention; ``mlp``: one of the others; ``embedding`` and ``head``, which may be tied."""

    config: PretrainedConfig
    split: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    mlp: str = "down_proj"
    embedding: str = "embed_tokens"


FAMILIES = {
    "llama": Family(tiny.llama_config(**SIZES)),
    "llama-tied": Family(tiny.llama_config(**SIZES, tie_word_embeddings=True)),
    "qwen2": Family(Qwen2Config(**SIZES)),  # biases in attention
    "qwen3": Family(Qwen3Config(**SIZES, tie_word_embeddings=True)),
    "mistral": Family(MistralConfig(**SIZES)),
    "gemma2": Family(Gemma2Config(**SIZES, query_pre_attn_scalar=8)),  # scaled and tied embeddings
    "gemma3": Family(Gemma3TextConfig(**SIZES, query_pre_attn_scalar=8)),
    "phi": Family(PhiConfig(**SIZES), mlp="fc2"),
    "phi3": Family(Phi3Config(**SIZES), split=("qkv_proj",), mlp="gate_up_proj"),
    "gpt2": Family(tiny.gpt2_config(), split=("c_attn",), mlp="c_fc", embedding="wte"),  # Conv1D
}
ALIKE = ("mistral", "qwen3", "gemma3")  # to others of these, in what adapters change
KINDS = ["plain", "patterns", "dora", "second_dora", "bias", "embedding", "dora_embedding", "head"]
TOKENS = list(range(1, 20))


def lora_config(kind: str, family: Family) -> LoraConfig:
    """What each adapter of the bank is."""
    first, both = family.split[0], [*family.split, family.mlp]
    values: dict[str, Any] = {
        "plain": {"target_modules": both},
        "patterns": {"use_rslora": True, "rank_pattern": {first: 2}, "alpha_pattern": {rf"layers\.1\..*{first}": 9}},
        "dora": {"use_dora": True, "target_modules": both},
        "second_dora": {"use_dora": True, "r": 5},
        "bias": {"lora_bias": True},
        "embedding": {"target_modules": [first, family.embedding]},
        "dora_embedding": {"target_modules": [family.embedding], "use_dora": True},
        "head": {"target_modules": [first, "lm_head"]},
    }[kind]
    return LoraConfig(
        **({"r": 4, "lora_alpha": 8, "target_modules": list(family.split), "init_lora_weights": False} | values),
        task_type="CAUSAL_LM",
    )


def save_adapter(model: Path, folder: Path, config: LoraConfig, seed: int) -> None:
    """An adapter as PEFT writes it, all its parts random."""
    torch.manual_seed(seed)
    peft = get_peft_model(load_model(str(model), "fp32"), config)
    for name, parameter in peft.named_parameters():
        if "magnitude" in name:
            parameter.data *= 0.5 + torch.rand_like(parameter)
        elif "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.15
    peft.save_pretrained(folder)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in ALIKE else []) for name in FAMILIES],
)
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder, bank = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("bank")
    family = FAMILIES[request.param]
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(family.config, dtype=torch.float32).save_pretrained(folder)
    for seed, kind in enumerate(KINDS):
        save_adapter(folder, bank / kind, lora_config(kind, family), seed)
    return folder, bank


@pytest.fixture(scope="module")
def by_peft(parts: tuple[Path, Path]) -> dict[str, torch.Tensor]:
    """The logits of each adapter of the bank as PEFT computes them."""
    folder, bank = parts
    return {
        kind: logits_of(PeftModel.from_pretrained(load_model(str(folder), "fp32"), bank / kind), TOKENS)
        for kind in KINDS
    }


@pytest.mark.long
@pytest.mark.parametrize("mode", ["auto", "union", "gather"])
def test_each_adapter_is_computed_as_by_peft_itself(
    parts: tuple[Path, Path], by_peft: dict[str, torch.Tensor], mode: LoraMode
) -> None:
    model, bank = load_model(str(parts[0]), "fp32"), AdapterBank.load(parts[1])
    fused = FusedLora(model, bank, LoraSettings(mode))
    found = {}
    base = logits_of(model, TOKENS)
    for kind in KINDS:
        fused.set_mixtures([Mixture.of({kind: 1.0})], expected_tokens=10**9)
        found[kind] = logits_of(model, TOKENS)
        assert (found[kind] - base).abs().max() > 0.02
    fused.detach()
    assert torch.equal(logits_of(model, TOKENS), base)
    for kind in KINDS:
        assert_close(found[kind], by_peft[kind])


@pytest.mark.parametrize("mode", ["union", "gather", "merged"])
def test_mixtures_of_all_kinds_equal_merged_weights(parts: tuple[Path, Path], mode: LoraMode) -> None:
    usable = [kind for kind in KINDS if mode != "merged" or kind in ("plain", "patterns", "dora", "second_dora")]
    model, bank = load_model(str(parts[0]), "fp32"), AdapterBank.load(parts[1], usable)
    mixtures = [
        Mixture.of({"plain": 0.5, "dora": 0.5}),
        Mixture.of({"dora": 0.25, "second_dora": 0.75}),
        Mixture(),
        Mixture.of({"patterns": 1.0}),
        Mixture.of({kind: 1 / len(usable) for kind in usable}),
    ]
    batches = [mixtures] if mode != "merged" else [[mixture] for mixture in mixtures]
    tokens = torch.randint(1, 96, (len(mixtures), 8), generator=torch.Generator().manual_seed(1))
    for batch in batches:
        found = in_one_batch(model, bank, batch, tokens[: len(batch)], mode)
        for row, mixture in enumerate(batch):
            assert_close(found[row], logits_of(merged(model, bank, mixture), tokens[row].tolist()))


def in_one_batch(
    model: Any, bank: AdapterBank, mixtures: Sequence[Mixture], tokens: torch.Tensor, mode: LoraMode
) -> torch.Tensor:
    fused = FusedLora(model, bank, LoraSettings(mode))
    fused.set_mixtures(mixtures)
    assert fused.forms == ["merged"] if mode == "merged" and mixtures[0].adapters else "merged" not in fused.forms
    with torch.no_grad():
        logits: torch.Tensor = model(tokens).logits
    fused.detach()
    return logits


def test_adapters_of_a_tied_embedding_leave_the_head_alone_and_the_other_way_round(parts: tuple[Path, Path]) -> None:
    model, bank = load_model(str(parts[0]), "fp32"), AdapterBank.load(parts[1], ["dora_embedding", "head"])
    hidden = torch.randn(1, 4, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 3, 4]])
    embed, head = model.get_input_embeddings(), model.get_output_embeddings()
    with torch.no_grad():
        before = embed(ids), head(hidden)
        fused = FusedLora(model, bank)
        fused.set_mixtures([Mixture.of({"dora_embedding": 1.0})])
        assert not torch.equal(embed(ids), before[0])
        assert torch.equal(head(hidden), before[1])
        fused.set_mixtures([Mixture.of({"head": 1.0})])
        assert torch.equal(embed(ids), before[0])
        assert not torch.equal(head(hidden), before[1])
        fused.detach()


def test_a_head_that_sees_some_of_the_tokens_adds_their_mixtures(parts: tuple[Path, Path]) -> None:
    model, bank = load_model(str(parts[0]), "fp32"), AdapterBank.load(parts[1], ["head", "plain", "bias"])
    mixtures = [Mixture.of({"head": 1.0}), Mixture.of({"plain": 0.5, "head": 0.5}), Mixture.of({"bias": 1.0})]
    places, kept = torch.tensor([0] * 5 + [1] * 5 + [2]), torch.tensor([4, 9, 10])
    ids = torch.tensor([TOKENS[: len(places)]])
    for mode in ("union", "gather"):
        fused = FusedLora(model, bank, LoraSettings(mode))  # type: ignore[arg-type]
        with torch.no_grad():
            fused.set_tokens(mixtures, places)
            full = model(ids).logits
            fused.set_tokens(mixtures, places, kept=kept)
            some = model(ids, logits_to_keep=kept).logits
            torch.testing.assert_close(some, full[:, kept], atol=1e-5, rtol=1e-5)
            fused.set_mixtures(mixtures[:2])
            full = model(ids.repeat(2, 1)).logits
            fused.set_mixtures(mixtures[:2])
            last = model(ids.repeat(2, 1), logits_to_keep=1).logits
            torch.testing.assert_close(last, full[:, -1:], atol=1e-5, rtol=1e-5)
        fused.detach()


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Any, Path, Path]:
    folder = tmp_path / "model"
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(FAMILIES["llama-tied"].config).save_pretrained(folder)
    return load_model(str(folder), "fp32"), folder, tmp_path / "bank"


def test_an_embedding_that_was_retrained_is_refused(llama: tuple[Any, Path, Path]) -> None:
    model, folder, bank = llama
    save_adapter(folder, bank / "words", lora_config("embedding", FAMILIES["llama"]), 0)
    FusedLora(model, AdapterBank.load(bank)).detach()
    FusedLora(load_model(str(folder), "bf16"), AdapterBank.load(bank)).detach()
    model.get_input_embeddings().weight.data[5, 3] += 0.01
    with pytest.raises(UserError, match=r"'words' carries model\.embed_tokens\.weight, and training changed it"):
        FusedLora(model, AdapterBank.load(bank))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("embedding", "is an embedding"), ("head", "shares its weight"), ("bias", "has no bias to merge lora_bias into")],
)
def test_what_cannot_be_merged_is_named_at_start(llama: tuple[Any, Path, Path], kind: str, reason: str) -> None:
    model, folder, path = llama
    save_adapter(folder, path / kind, lora_config(kind, FAMILIES["llama"]), 0)
    bank = AdapterBank.load(path)
    with pytest.raises(UserError, match=rf"engine\.lora\.mode=merged cannot merge .*{reason}"):
        FusedLora(model, bank, LoraSettings("merged"))
    fused = FusedLora(model, bank)
    fused.set_mixtures([Mixture.of({kind: 1.0})], expected_tokens=10**9)
    assert "merged" not in fused.forms
    fused.detach()


def test_a_mixture_of_experts_takes_adapters_of_its_attention_and_of_its_gates(tmp_path: Path) -> None:
    folder, path = tmp_path / "model", tmp_path / "bank"
    torch.manual_seed(7)
    config = MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for seed, name in enumerate("ab"):
        save_adapter(folder, path / name, LoraConfig(r=4, target_modules=["q_proj", "o_proj"]), seed)
    model, bank = load_model(str(folder), "fp32"), AdapterBank.load(path)
    mixtures = [Mixture.of({"a": 1.0}), Mixture.of({"a": 0.5, "b": 0.5})]
    tokens = torch.randint(1, 96, (2, 8), generator=torch.Generator().manual_seed(1))
    found = in_one_batch(model, bank, mixtures, tokens, "auto")
    for row, mixture in enumerate(mixtures):
        assert_close(found[row], logits_of(merged(model, bank, mixture), tokens[row].tolist()))


def test_adapters_of_experts_are_refused_by_name(llama: tuple[Any, Path, Path]) -> None:
    model, _, bank = llama
    tiny.make_adapter(bank / "moe", {"model.layers.0.mlp.experts.3.up_proj": (32, 48)}, 4, 0)
    with pytest.raises(UserError, match=r"'moe' changes model\.layers\.0\.mlp\.experts\.3\.up_proj, and experts"):
        FusedLora(model, AdapterBank.load(bank))
    config = json.loads((bank / "moe" / "adapter_config.json").read_text()) | {"target_parameters": ["experts.w1"]}
    (bank / "moe" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"'moe': target_parameters="):
        AdapterBank.load(bank)
