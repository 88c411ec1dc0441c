"""The fused operator against weights that are merged one by one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.adapters import AdapterBank
from pipeline.engine import FusedLora, LoraSettings
from pipeline.engine.settings import LoraMode
from pipeline.errors import UserError
from pipeline.models import load_model
from pipeline.records import Mixture
from pipeline.routing.policy import blend
from tests import examples, tiny
from tests.engine.reference import assert_close, logits_of, merged

MODES: list[LoraMode] = ["auto", "union", "gather", "merged"]


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


@pytest.mark.long
@settings(max_examples=examples(20))
@given(data=st.data())
def test_logits_equal_those_of_merged_weights_for_one_to_five_of_eight_adapters(
    parts: tuple[Any, AdapterBank], data: st.DataObject
) -> None:
    model, bank = parts
    mixtures = data.draw(st.lists(mixtures_strategy() | st.just(Mixture()), min_size=2, max_size=5))
    tokens = torch.randint(1, 600, (len(mixtures), 12), generator=torch.Generator().manual_seed(3))
    fused = FusedLora(model, bank, LoraSettings(data.draw(st.sampled_from(MODES))))
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


@pytest.mark.long
@settings(max_examples=examples(30))
@given(data=st.data())
def test_batches_in_turn_on_one_operator_are_exact_in_every_mode(
    parts: tuple[Any, AdapterBank], data: st.DataObject
) -> None:
    """Adapters come and go, within slots and beyond them; rows and packed tokens take turns."""
    model, bank = parts
    mode = data.draw(st.sampled_from(MODES))
    fused = FusedLora(model, bank, LoraSettings(mode, adapter_slots=data.draw(st.integers(0, 3))))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    choice = mixtures_strategy() | st.just(Mixture())
    for _ in range(data.draw(st.integers(1, 4))):
        mixtures = data.draw(st.lists(choice, min_size=1, max_size=4))
        if data.draw(st.booleans()):
            mixtures = mixtures[:1] * data.draw(st.integers(1, 3))
        tokens = torch.randint(1, 600, (len(mixtures), 6), generator=generator)
        with torch.no_grad():
            if data.draw(st.booleans()):
                fused.set_mixtures(mixtures, expected_tokens=data.draw(st.sampled_from([0, 10**9])))
                found = model(tokens).logits
            else:
                found = packed_logits(model, fused, tokens, mixtures)
        fused.golden.restore()
        fused._wrap_modules(False)
        for row, mixture in enumerate(mixtures):
            assert_close(found[row], logits_of(merged(model, bank, mixture), tokens[row].tolist()))
    fused.detach()


def packed_logits(model: Any, fused: FusedLora, tokens: torch.Tensor, mixtures: Sequence[Mixture]) -> torch.Tensor:
    """Logits of rows that run as one row [1 x T], each attending to itself alone."""
    rows, length = tokens.shape
    row = torch.arange(rows).repeat_interleave(length)
    fused.set_tokens(mixtures, row)
    seen = (row.unsqueeze(1) == row) & torch.ones(rows * length, rows * length, dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = torch.arange(length).repeat(rows).unsqueeze(0)
    logits = model(tokens.view(1, -1), attention_mask=mask[None, None], position_ids=positions).logits
    return logits.view(rows, length, -1)


@pytest.mark.parametrize("mode", ["union", "gather"])
def test_many_tokens_of_few_mixtures_among_single_ones(parts: tuple[Any, AdapterBank], mode: LoraMode) -> None:
    """Two prompt chunks of 70 tokens, one of them in two parts, and decoding rows between them."""
    model, bank = parts
    a, b, c = Mixture.of({"red": 0.5, "cold": 0.5}), Mixture.of({"tall": 1.0}), Mixture.of({"slow": 0.25, "dark": 0.75})
    places = torch.tensor([0] * 70 + [2, 3, 1, 2] + [1] * 70 + [0] * 3)
    tokens = torch.randint(1, 600, (1, len(places)), generator=torch.Generator().manual_seed(5))
    fused = FusedLora(model, bank, LoraSettings(mode))
    place = next(name for name in bank.modules if name.endswith(("q_proj", "c_attn")))
    linear = model.get_submodule(place)
    x = torch.randn(1, len(places), 48, generator=torch.Generator().manual_seed(6))
    mixtures = [a, b, c, Mixture()]
    fused.set_tokens(mixtures, places)
    with torch.no_grad():
        found = linear(x)[0]
        assert model(tokens).logits.isfinite().all()
    fused.detach()
    for number, mixture in enumerate(mixtures):
        expected = merged(model, bank, mixture).get_submodule(place)(x)[0].detach()
        chosen = places == number
        torch.testing.assert_close(found[chosen], expected[chosen], atol=1e-5, rtol=1e-5)


def test_merging_waits_until_it_pays(parts: tuple[Any, AdapterBank]) -> None:
    model, bank = parts
    fused = FusedLora(model, bank)
    red = Mixture.of({"red": 1.0})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused.set_mixtures([red, red])
    assert "merged" not in fused.forms
    fused.set_mixtures([red, red], expected_tokens=10**9)
    assert fused.forms == ["merged"]
    fused.set_mixtures([red])  # merged already: nothing to pay for
    assert fused.forms == ["merged"]
    fused.set_mixtures([red, Mixture()], expected_tokens=10**9)
    assert "merged" not in fused.forms
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    fused.detach()


def test_a_blend_of_all_adapters_is_merged_and_exact(parts: tuple[Any, AdapterBank]) -> None:
    """The fallback ``all``: weights of 1/n, here of seven adapters, so that they are no exact floats."""
    model, bank = parts
    mixture = blend(tiny.ADAPTERS[:7])
    tokens = torch.randint(1, 600, (3, 12), generator=torch.Generator().manual_seed(4))
    fused = FusedLora(model, bank)
    fused.set_mixtures([mixture] * 3, expected_tokens=10**9)
    assert fused.forms == ["merged"]
    with torch.no_grad():
        alone = model(tokens).logits
        fused.set_mixtures([mixture, mixture, Mixture.of({"red": 1.0})])
        assert "merged" not in fused.forms
        mixed = model(tokens).logits
    fused.detach()
    for row in range(3):
        expected = logits_of(merged(model, bank, mixture), tokens[row].tolist())
        assert_close(alone[row], expected)
        if row < 2:
            assert_close(mixed[row], expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", MODES)
def test_half_precision_differs_by_rounding_only_and_merged_weights_come_back(
    tmp_path: Path, dtype: str, mode: LoraMode
) -> None:
    folder = tiny.make_model(tmp_path / "model")
    bank = AdapterBank.load(tiny.make_bank(tmp_path / "bank", folder))
    model = load_model(str(folder), dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exact = load_model(str(folder), "fp32")
    mixture = Mixture.of({"red": 0.5, "tall": 0.25, "cold": 0.25})
    tokens = list(range(1, 20))
    plain = (logits_of(model, tokens).float() - logits_of(exact, tokens)).abs().max()
    fused = FusedLora(model, bank, LoraSettings(mode))
    for other in (Mixture.of({"slow": 1.0}), mixture):
        fused.set_mixtures([other])
    found = logits_of(model, tokens).float()
    fused.detach()
    wrong = (found - logits_of(merged(exact, bank, mixture), tokens)).abs().max()
    assert wrong < 4 * plain
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_overflow_in_fp16_stays_in_its_row(tmp_path: Path) -> None:
    folder = tiny.make_model(tmp_path / "model")
    bank = AdapterBank.load(tiny.make_bank(tmp_path / "bank", folder))
    for part in bank.adapters["tall"].modules.values():
        part.A.fill_(6e4)
    model = load_model(str(folder), "fp16")
    red, tall = Mixture.of({"red": 1.0}), Mixture.of({"tall": 1.0})
    tokens = torch.randint(1, 600, (2, 6), generator=torch.Generator().manual_seed(1))
    fused = FusedLora(model, bank, LoraSettings("union"))
    fused.set_mixtures([red, tall])
    with torch.no_grad():
        together = model(tokens).logits
    fused.set_mixtures([red])
    alone = logits_of(model, tokens[0].tolist())
    assert not together[1].isfinite().all()
    assert (together[0] - alone).abs().max() < 0.1
    part.B.fill_(1e6)
    fused = FusedLora(model, bank)
    with pytest.raises(UserError, match=r"'tall' has weights beyond fp16; use model\.dtype"):
        fused.set_mixtures([tall])
    fused.detach()


def test_counts_of_rows_that_do_not_fit_are_refused(parts: tuple[Any, AdapterBank]) -> None:
    model, bank = parts
    fused = FusedLora(model, bank)
    fused.set_mixtures([Mixture.of({"red": 1.0})] * 2)
    with pytest.raises(ValueError, match="set for 2 rows, the model runs 9"):
        logits_of(model, list(range(9)))
    fused.set_tokens([Mixture.of({"red": 1.0})], torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="set for 4 tokens, the model runs 9"):
        logits_of(model, list(range(9)))
    fused.detach()
