import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.adapters import AdapterBank, BaseShapes
from tests.adapters.make import SHAPES, Q, V, make_adapter, make_tensors, tensor_name
from tests.storage import user_error


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three adapters of ranks 4, 2 and 3; the last one changes only one module."""
    make_adapter(tmp_path / "bank" / "legal", make_tensors(4, seed=1), lora_alpha=8)
    make_adapter(tmp_path / "bank" / "med", make_tensors(2, seed=2), r=2, lora_alpha=1)
    make_adapter(tmp_path / "bank" / "art", make_tensors(3, 3, {V: SHAPES[V]}), r=3, lora_alpha=9, use_rslora=True)
    return tmp_path / "bank"


def test_every_adapter_of_a_folder_is_read_and_other_entries_are_not(folder: Path) -> None:
    (folder / "README.md").write_text("hi")
    (folder / ".cache").mkdir()
    bank = AdapterBank.load(folder)
    assert (bank.names, bank.modules) == (["art", "legal", "med"], [Q, V])
    assert {name: a.config.r for name, a in bank.adapters.items()} == {"art": 3, "legal": 4, "med": 2}


def test_only_the_adapters_that_are_named_are_read(folder: Path) -> None:
    (folder / "legal" / "adapter_model.safetensors").write_bytes(b"broken")
    assert AdapterBank.load(str(folder), ["med", "art"]).names == ["art", "med"]


def test_adapters_that_are_not_there_are_named(folder: Path) -> None:
    with user_error("gone, lost", str(folder), "bank.adapters"):
        AdapterBank.load(folder, ["med", "lost", "gone"])


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with user_error(str(tmp_path / "gone"), "bank.path"):
        AdapterBank.load(tmp_path / "gone")


def test_a_folder_without_adapters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with user_error("no adapter", str(tmp_path)):
        AdapterBank.load(tmp_path)


def test_a_damaged_adapter_is_refused_by_name(folder: Path) -> None:
    (folder / "med" / "adapter_model.safetensors").write_bytes(b"broken")
    with user_error("'med'", str(folder / "med")):
        AdapterBank.load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["A", "B"])
def test_values_that_are_no_numbers_are_refused(folder: Path, value: float, side: str) -> None:
    tensors = make_tensors(4)
    tensors[tensor_name(V, side)][1, 2] = value
    make_adapter(folder / "legal", tensors)
    with user_error("'legal'", V):
        AdapterBank.load(folder).check_values()


def test_good_values_pass(folder: Path) -> None:
    AdapterBank.load(folder).check_values()


def test_a_bank_fits_a_model_with_its_layers(folder: Path) -> None:
    AdapterBank.load(folder).check_base({**SHAPES, "lm_head": (8, 100)}, "tiny")


@pytest.mark.parametrize(
    ("shapes", "named"),
    [
        ({V: SHAPES[V]}, Q),
        ({**SHAPES, Q: (16, 8)}, "8 to 8, the model tiny has 16 to 8"),
        ({**SHAPES, Q: (8, 7)}, "8 to 8, the model tiny has 8 to 7"),
    ],
)
def test_a_bank_of_another_base_model_is_refused(folder: Path, shapes: BaseShapes, named: str) -> None:
    with user_error("'legal'", "tiny", named, str(folder / "legal")):
        AdapterBank.load(folder).check_base(shapes, "tiny")


def fingerprint(folder: Path) -> str:
    return AdapterBank.load(folder).fingerprint


def test_the_fingerprint_does_not_depend_on_the_folder_or_the_order_of_reading(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert fingerprint(tmp_path / "elsewhere") == fingerprint(folder)
    assert AdapterBank.load(folder, ["med", "legal", "art"]).fingerprint == fingerprint(folder)


@pytest.mark.parametrize("module", [Q, V])
@pytest.mark.parametrize("side", ["A", "B"])
def test_the_fingerprint_changes_with_the_smallest_change_of_a_weight(folder: Path, module: str, side: str) -> None:
    before = fingerprint(folder)
    tensors = make_tensors(4, seed=1)
    value = tensors[tensor_name(module, side)]
    value[-1, -1] = torch.nextafter(value[-1, -1], torch.tensor(9.0))
    make_adapter(folder / "legal", tensors, lora_alpha=8)
    assert fingerprint(folder) != before


@pytest.mark.parametrize(
    "config", [{"lora_alpha": 9}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 9}}], ids=lambda c: next(iter(c))
)
def test_the_fingerprint_changes_with_a_scale(folder: Path, config: dict[str, object]) -> None:
    before = fingerprint(folder)
    make_adapter(folder / "legal", make_tensors(4, seed=1), **{"lora_alpha": 8, **config})
    assert fingerprint(folder) != before


@pytest.mark.parametrize(("key", "part"), [("use_dora", "lora_magnitude_vector"), ("lora_bias", "lora_B.bias")])
def test_the_fingerprint_changes_with_magnitudes_and_biases(folder: Path, key: str, part: str) -> None:
    prints = {fingerprint(folder)}
    for value in (1.0, 2.0):
        vectors = {f"base_model.model.{m}.{part}": torch.full((out,), value) for m, (_, out) in SHAPES.items()}
        make_adapter(folder / "legal", {**make_tensors(4, seed=1), **vectors}, lora_alpha=8, **{key: True})
        prints.add(fingerprint(folder))
    assert len(prints) == 3


def test_the_fingerprint_changes_with_a_name_and_with_the_set_of_adapters(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "med").rename(folder / "medicine")
    renamed = fingerprint(folder)
    shutil.rmtree(folder / "medicine")
    assert len({before, renamed, fingerprint(folder)}) == 3


def test_the_fingerprint_does_not_change_with_keys_that_do_not_matter(folder: Path) -> None:
    before = fingerprint(folder)
    make_adapter(folder / "legal", make_tensors(4, seed=1), lora_alpha=8, lora_dropout=0.5, revision="x")
    assert fingerprint(folder) == before


TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SAVED = LoraConfig(
    r=4,
    lora_alpha=8,
    use_rslora=True,
    target_modules=["q_proj", "v_proj", "down_proj"],
    rank_pattern={"down_proj": 2, r"layers\.1\..*q_proj": 3},
    alpha_pattern={"v_proj": 5},
    init_lora_weights=False,
)


def test_an_adapter_that_peft_saved_computes_what_peft_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    base = {name: (m.in_features, m.out_features) for name, m in model.named_modules() if hasattr(m, "in_features")}
    tuned = get_peft_model(model, SAVED)
    tuned.save_pretrained(tmp_path / "saved")
    bank = AdapterBank.load(tmp_path)
    bank.check_values()
    bank.check_base(base, "tiny")
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}
    assert set(bank.modules) == set(layers)
    for module, weights in bank.adapters["saved"].modules.items():
        torch.testing.assert_close(weights.scale * weights.B @ weights.A, layers[module].get_delta_weight("default"))
