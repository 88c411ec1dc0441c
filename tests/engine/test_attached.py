"""Mixtures in `model.generate` of transformers, and the model after them."""

import copy
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from pipeline.adapters import AdapterBank
from pipeline.engine import Attached, LoraSettings, attach, mixtures
from pipeline.errors import UserError
from pipeline.models import load_model, load_tokenizer
from pipeline.records import Mixture
from tests.engine.lora.test_lora import merged

MIXTURES = [{"red": 0.75, "cold": 0.25}, "tall", None, Mixture.of({"slow": 1.0, "dark": -0.5})]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_model(str(tiny_model), "fp32")


@pytest.fixture
def handle(model: Any, tiny_bank: Path) -> Iterator[Attached]:
    with attach(model, tiny_bank) as attached:
        yield attached


@pytest.fixture
def prompts(tiny_model: Path) -> Any:
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.padding_side = "left"
    words = ["red1", "tall1 tall2 tall3 tall4", "cold2 cold3", "slow1 slow2 slow3 slow1 slow2"]
    return tokenizer(words, return_tensors="pt", padding=True)


def generated(model: Any, prompts: Any, **options: Any) -> list[list[int]]:
    values = {"max_new_tokens": 10, "do_sample": False} | options
    rows: list[list[int]] = model.generate(**prompts, **values)[:, prompts["input_ids"].shape[1] :].tolist()
    return rows


def expected(model: Any, bank: AdapterBank, prompts: Any, asked: list[Any], **options: Any) -> list[list[int]]:
    """What each row gives alone, with explicitly merged weights."""
    rows = []
    for place, one in enumerate(asked):
        mixture = one if isinstance(one, Mixture) else Mixture.of({one: 1.0} if isinstance(one, str) else one or {})
        own = {key: value[place : place + 1] for key, value in prompts.items()}
        rows += generated(merged(model, bank, mixture), own, **options)
    return rows


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}], ids=str)
def test_each_row_gets_its_mixture(handle: Attached, prompts: Any, options: dict[str, Any]) -> None:
    with handle.mixtures(MIXTURES):
        together = generated(handle.model, prompts, **options)
    handle.detach()
    alone = expected(handle.model, handle.lora.bank, prompts, MIXTURES, **options)
    longest = max(map(len, [*alone, *together]))
    assert [r + [0] * (longest - len(r)) for r in together] == [r + [0] * (longest - len(r)) for r in alone]


def test_the_module_function_serves_every_attached_model(tiny_bank: Path, model: Any, prompts: Any) -> None:
    other = copy.deepcopy(model)
    with attach(model, tiny_bank) as first, attach(other, tiny_bank) as second:
        with mixtures(MIXTURES):
            both = [generated(m, prompts) for m in (model, other)]
        with second.mixtures(MIXTURES):
            assert generated(other, prompts) == both[0] == both[1]
            assert generated(model, prompts) != both[0]
        assert first.lora.forms == []


def test_outside_of_the_block_the_base_model_answers(handle: Attached, prompts: Any, tiny_model: Path) -> None:
    base = generated(load_model(str(tiny_model), "fp32"), prompts)
    assert generated(handle.model, prompts) == base
    with handle.mixtures(["red"] * 4):
        inside = generated(handle.model, prompts)
        with handle.mixtures([None] * 4):
            assert generated(handle.model, prompts) == base
        assert generated(handle.model, prompts) == inside != base
    assert generated(handle.model, prompts) == base


@pytest.mark.parametrize("mode", ["auto", "union", "gather", "merged"])
def test_detaching_restores_the_model_bit_for_bit(tiny_bank: Path, tiny_model: Path, prompts: Any, mode: Any) -> None:
    model = load_model(str(tiny_model), "bf16")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    classes = [(name, type(m)) for name, m in model.named_modules()]
    attributes = set(vars(model))
    handle = attach(model, tiny_bank, LoraSettings(mode=mode))
    with handle.mixtures(["red"] * 4):
        generated(model, prompts)
        assert handle.lora.forms
        handle.detach()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [(name, type(m)) for name, m in model.named_modules()] == classes
    assert set(vars(model)) == attributes
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


def test_a_forward_that_another_library_put_there_is_called_and_comes_back(
    model: Any, tiny_bank: Path, prompts: Any
) -> None:
    layer, calls = model.model.layers[0].self_attn.q_proj, []
    plain = layer.forward

    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return plain(x)

    layer.forward = counted
    handle = attach(model, tiny_bank, LoraSettings(mode="gather"))
    with handle.mixtures(["red"] * 4):
        generated(model, prompts)
        assert calls
        handle.detach()
    assert vars(layer)["forward"] is counted
    del layer.forward


def test_a_count_of_mixtures_that_does_not_fit_the_batch_is_refused(handle: Attached, prompts: Any) -> None:
    with handle.mixtures(["red", "cold", "tall"]), pytest.raises(UserError, match="3 mixtures for a batch of 4 rows"):
        generated(handle.model, prompts)
    with pytest.raises(UserError, match="a list"):
        handle.mixtures("red").__enter__()


def test_an_adapter_that_the_bank_lacks_is_named(handle: Attached) -> None:
    with pytest.raises(UserError, match="no adapter nobody"), handle.mixtures(["nobody"]):
        pass


def test_a_model_with_lora_layers_is_refused_and_its_unloaded_base_is_not(
    tiny_model: Path, tiny_bank: Path, handle: Attached
) -> None:
    with pytest.raises(UserError, match="already attached to this model"):
        attach(handle.model, tiny_bank)
    peft = PeftModel.from_pretrained(load_model(str(tiny_model), "fp32"), tiny_bank / "red")
    for wrapped in (peft, peft.base_model.model):
        with pytest.raises(UserError, match=r"wrapped by peft.*unload"):
            attach(wrapped, tiny_bank)
    attach(peft.unload(), tiny_bank).detach()
    other = get_peft_model(load_model(str(tiny_model), "fp32"), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match="unload"):
        attach(other, tiny_bank)


def test_a_compiled_model_is_refused(model: Any, tiny_bank: Path) -> None:
    with pytest.raises(UserError, match="compiled"):
        attach(torch.compile(model), tiny_bank)  # type: ignore[arg-type]


def test_the_code_of_the_notebook_page_runs(
    tiny_model: Path, tiny_bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", Path("docs/notebook.md").read_text(), re.DOTALL)
    shutil.copytree(tiny_model, tmp_path / "model")
    shutil.copytree(tiny_bank, tmp_path / "bank")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks[0], names)  # the page's own code
    inside = names["output"]
    exec(blocks[1], names)
    assert len(blocks) == 2
    assert not torch.equal(inside[:2, -8:], names["output"][:2, -8:])
    assert torch.equal(inside[2, -8:], names["output"][2, -8:])
