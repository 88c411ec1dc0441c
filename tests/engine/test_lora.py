"""The fused operator against weights that are merged one by one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.adapters import AdapterBank
from pipeline.engine import FusedLora
from pipeline.errors import UserError
from pipeline.models import load_model
from pipeline.records import Mixture
from tests import tiny


def merged(model: Any, bank: AdapterBank, mixture: Mixture) -> Any:
    """A copy of the model with ``W + sum w_i s_i B_i A_i`` in place of each W."""
    copied = copy.deepcopy(model)
    modules = dict(copied.named_modules())
    for name, weight in zip(mixture.adapters, mixture.weights, strict=True):
        for module, part in bank.adapters[name].modules.items():
            update = weight * part.scale * (part.B @ part.A)
            target = modules[module].weight
            target.data += update.T if target.shape != update.shape or "c_" in module else update
    return copied


def logits_of(model: Any, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return logits


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def parts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, AdapterBank]:
    config = tiny.llama_config() if request.param == "llama" else tiny.gpt2_config()
    folder = tiny.make_model(tmp_path_factory.mktemp(request.param), config)
    bank = tiny.make_bank(tmp_path_factory.mktemp("bank"), folder)
    return load_model(str(folder), "fp32"), AdapterBank.load(bank)


def mixtures_strategy() -> st.SearchStrategy[Mixture]:
    chosen = st.lists(st.sampled_from(tiny.ADAPTERS), min_size=1, max_size=5, unique=True)
    return chosen.flatmap(
        lambda names: st.lists(st.integers(1, 16), min_size=len(names), max_size=len(names)).map(
            lambda units: Mixture.of({n: u / sum(units) for n, u in zip(names, units, strict=True)})
        )
    )


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_logits_equal_those_of_merged_weights_for_one_to_five_of_eight_adapters(
    parts: tuple[Any, AdapterBank], data: st.DataObject
) -> None:
    model, bank = parts
    mixtures = data.draw(st.lists(mixtures_strategy() | st.just(Mixture()), min_size=2, max_size=5))
    tokens = torch.randint(1, 600, (len(mixtures), 12), generator=torch.Generator().manual_seed(3))
    fused = FusedLora(model, bank)
    fused.set_mixtures(mixtures)
    with torch.no_grad():
        together = model(tokens).logits
    fused.detach()
    for row, mixture in enumerate(mixtures):
        expected = logits_of(merged(model, bank, mixture), tokens[row].tolist())
        assert (together[row] - expected).abs().max() < 1e-4
        assert torch.equal(together[row].argmax(-1), expected.argmax(-1))


def test_mixtures_change_the_logits_and_detaching_restores_the_model(parts: tuple[Any, AdapterBank]) -> None:
    model, bank = parts
    tokens = list(range(1, 12))
    before = logits_of(model, tokens)
    fused = FusedLora(model, bank)
    fused.set_mixtures([Mixture.of({"red": 0.5, "cold": 0.5})])
    assert (logits_of(model, tokens) - before).abs().max() > 0.05
    fused.set_mixtures([Mixture()])
    assert torch.equal(logits_of(model, tokens), before)
    fused.detach()
    assert torch.equal(logits_of(model, tokens), before)


def test_an_adapter_that_the_bank_lacks_is_named(parts: tuple[Any, AdapterBank]) -> None:
    model, bank = parts
    fused = FusedLora(model, bank)
    with pytest.raises(UserError, match="no adapter nobody in the bank"):
        fused.set_mixtures([Mixture.of({"nobody": 1.0})])
    fused.detach()


def test_a_bank_of_another_model_is_refused(parts: tuple[Any, AdapterBank], tmp_path: Path) -> None:
    other = load_model(str(tiny.make_model(tmp_path, tiny.llama_config(hidden_size=64))), "fp32")
    with pytest.raises(UserError, match="another base model"):
        FusedLora(other, parts[1])
