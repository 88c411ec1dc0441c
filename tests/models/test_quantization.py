"""Base models in 8 and 4 bits: what adapters add to them, and what is refused."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.adapters import AdapterBank
from pipeline.engine import FusedLora, LoraSettings
from pipeline.errors import UserError
from pipeline.models import Quantization, load_model
from pipeline.records import Mixture
from tests import tiny

pytest.importorskip("bitsandbytes")
MIXTURES = [Mixture.of({"red": 1.0}), Mixture(), Mixture.of({"cold": 0.5, "slow": 0.5})]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    config = tiny.llama_config(hidden_size=64, intermediate_size=128)
    model = tiny.make_model(tmp_path_factory.mktemp("model"), config)
    return model, tiny.make_bank(tmp_path_factory.mktemp("bank"), model)


def logits(model: Any, bank: AdapterBank, mode: Any) -> torch.Tensor:
    fused = FusedLora(model, bank, LoraSettings(mode))
    fused.set_mixtures(MIXTURES)
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(1, 25).view(3, 8)).logits
    fused.detach()
    return found


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("mode", ["union", "gather"])
def test_adapters_add_to_quantised_layers_what_they_add_to_others(
    folders: tuple[Path, Path], quantization: Quantization, mode: Any
) -> None:
    model, bank = load_model(str(folders[0]), "fp32", quantization=quantization), AdapterBank.load(folders[1])
    layer = model.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == {"8bit": "Linear8bitLt", "4bit": "Linear4bit"}[quantization]
    assert type(model.lm_head) is nn.Linear
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        base = layer(x)
        fused = FusedLora(model, bank, LoraSettings(mode))
        fused.set_mixtures(MIXTURES)
        found = layer(x) - base
        fused.detach()
    for row, mixture in enumerate(MIXTURES):
        expected = torch.zeros_like(base[row])
        for name, weight in zip(mixture.adapters, mixture.weights, strict=True):
            part = bank.adapters[name].modules["model.layers.0.self_attn.q_proj"]
            expected += weight * part.scale * (x[row] @ part.A.T @ part.B.T)
        torch.testing.assert_close(found[row], expected, atol=1e-4, rtol=1e-4)


def test_mixtures_on_8_bit_weights_differ_by_its_rounding(folders: tuple[Path, Path]) -> None:
    exact, bank = load_model(str(folders[0]), "fp32"), AdapterBank.load(folders[1])
    model = load_model(str(folders[0]), "fp32", quantization="8bit")
    found, expected = logits(model, bank, "auto"), logits(exact, bank, "auto")
    moved = (logits(exact, bank, "auto") - exact(torch.arange(1, 25).view(3, 8)).logits)[0].abs().max()
    assert (found - expected).abs().max() < 0.1 * moved


def test_dora_and_merging_on_quantised_weights_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model = load_model(str(folders[0]), "fp32", quantization="4bit")
    with pytest.raises(UserError, match=r"lora\.mode=merged cannot merge .* is quantised"):
        FusedLora(model, AdapterBank.load(folders[1]), LoraSettings("merged"))
    bank = AdapterBank.load(folders[1], ["red"])
    place = next(iter(bank.adapters["red"].modules))
    weights = bank.adapters["red"].modules[place]
    object.__setattr__(weights, "magnitude", torch.ones(weights.B.shape[0]))
    with pytest.raises(UserError, match=r"'red': .* is quantised: DoRA .*model\.quantization=none"):
        FusedLora(model, bank)


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, folders: tuple[Path, Path]) -> None:
    monkeypatch.setattr("pipeline.models.load.find_spec", lambda name: importlib.util.find_spec("no_such_one"))
    with pytest.raises(UserError, match=r"model\.quantization=4bit needs the package bitsandbytes: pip install"):
        load_model(str(folders[0]), "fp32", quantization="4bit")
