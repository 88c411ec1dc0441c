"""What vLLM cannot do is refused by name, and nothing is loaded for it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline.adapters import AdapterBank
from pipeline.engine import Constraint, EngineSettings, Sampling, registry
from pipeline.engine.vllm import check
from pipeline.engine.vllm.settings import VllmSettings
from pipeline.errors import UserError
from tests.adapters.make import Q, make_adapter, make_tensors, tensor_name


def bank_of(folder: Path, extra: dict[str, Any] | None = None, **config: Any) -> AdapterBank:
    tensors = make_tensors(config.get("r", 4)) | (extra or {})
    make_adapter(folder / "legal", tensors, **config)
    return AdapterBank.load(folder)


def refused(bank: AdapterBank, most: int = 1, settings: VllmSettings | None = None) -> str:
    with pytest.raises(UserError) as caught:
        check.check_bank(settings or VllmSettings(), bank, most)
    return str(caught.value)


def test_plain_adapters_pass(tmp_path: Path) -> None:
    check.check_bank(VllmSettings(), bank_of(tmp_path, use_rslora=True, alpha_pattern={"q_proj": 3}), 1)


def test_dora_is_refused(tmp_path: Path) -> None:
    magnitudes = {
        tensor_name(module, "A").replace("lora_A.weight", "lora_magnitude_vector"): make_tensors()[
            tensor_name(module, "B")
        ][:, 0].clone()
        for module in (Q, Q.replace("q_proj", "v_proj"))
    }
    said = refused(bank_of(tmp_path, magnitudes, use_dora=True))
    assert said.startswith("bank: adapter 'legal' is a DoRA adapter")
    assert "use engine=native" in said


def test_lora_bias_is_refused(tmp_path: Path) -> None:
    biases = {
        tensor_name(module, "B").replace("weight", "bias"): make_tensors()[tensor_name(module, "B")][:, 0].clone()
        for module in (Q, Q.replace("q_proj", "v_proj"))
    }
    assert "has a lora_bias at model.layers.0.self_attn." in refused(bank_of(tmp_path, biases, lora_bias=True))


def test_embeddings_and_heads_are_refused(tmp_path: Path) -> None:
    head = make_tensors(shapes={"lm_head": (8, 32)})
    assert "changes lm_head, the model's head" in refused(bank_of(tmp_path / "head", head))
    place = "base_model.model.model.embed_tokens.lora_embedding_"
    table = make_tensors(shapes={"x": (32, 8)})
    embedding = {place + side: table[tensor_name("x", side)] for side in "AB"}
    assert "changes the embedding model.embed_tokens" in refused(bank_of(tmp_path / "table", embedding))


def test_weights_of_the_base_model_are_compared_with_its_files(tmp_path: Path, tiny_model: Path) -> None:
    own = load_file(tiny_model / "model.safetensors")["model.norm.weight"]
    place = "base_model.model.model.norm.weight"
    equal, changed = bank_of(tmp_path / "a", {place: own}), bank_of(tmp_path / "b", {place: own + 1})
    check.check_copies(equal, str(tiny_model), False)
    check.check_bank(VllmSettings(), equal, 1)
    with pytest.raises(UserError, match=r"'legal' carries model\.norm\.weight, and training changed it"):
        check.check_copies(changed, str(tiny_model), False)
    shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(UserError, match=r"has no file to compare it with, as engine=vllm needs"):
        check.check_copies(equal, str(tmp_path / "model"), False)


@pytest.mark.parametrize(("ranks", "accepted"), [((1,), 1), ((4, 9), 16), ((200, 300), 320), ((512,), 512)])
def test_slots_have_the_next_rank_that_vllm_takes(tmp_path: Path, ranks: tuple[int, ...], accepted: int) -> None:
    for rank in ranks:
        make_adapter(tmp_path / f"a{rank}", make_tensors(rank), r=rank)
    bank = AdapterBank.load(tmp_path)
    check.check_bank(VllmSettings(), bank, len(ranks))
    assert check.lora_rank(bank) == accepted


def test_larger_ranks_and_mixtures_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_adapter(tmp_path / "small" / name, make_tensors(4), r=4)
    said = refused(AdapterBank.load(tmp_path / "small"), 3, VllmSettings(adapter_slots=2))
    assert said.startswith("config: engine.adapter_slots=2: mixtures may have 3 adapters; raise it")
    assert "'legal' has rank 513 at model.layers.0.self_attn." in refused(bank_of(tmp_path / "large", None, r=513))


def test_a_missing_vllm_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="engine=vllm needs the package vllm: pip install"):
        registry.check_installed(VllmSettings())


def test_temperatures_above_those_of_vllm_are_told() -> None:
    vllm = registry.capabilities_of(VllmSettings())
    assert not vllm.sampling_problem(Sampling(temperature=2.0, repetition_penalty=1.1), True)
    said = vllm.sampling_problem(Sampling(temperature=2.5), False)
    assert said == "temperature 2.5: the engine takes 2 at most"


@pytest.mark.parametrize(
    "sampling",
    [Sampling(constraint=Constraint("regex", "a")), Sampling(presence_penalty=1.0), Sampling(frequency_penalty=0.5)],
)
def test_what_counts_the_tokens_of_an_answer_is_not_for_sentences(sampling: Sampling) -> None:
    vllm = registry.capabilities_of(VllmSettings())
    assert not vllm.sampling_problem(sampling, False)
    assert "do not go with routing.granularity=sentence" in vllm.sampling_problem(sampling, True)
    assert not registry.capabilities_of(EngineSettings()).sampling_problem(sampling, True)
