"""Weights of the base model in an adapter's file: taken if they equal the model's, else refused with what to do."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.adapters import AdapterBank
from pipeline.engine import FusedLora, load_bank
from pipeline.errors import UserError
from pipeline.models import StoredWeights, load_config, load_model, load_skeleton
from tests import tiny
from tests.storage import user_error

WEIGHTS = "adapter_model.safetensors"
EMBEDDING = "base_model.model.model.embed_tokens.weight"


@pytest.fixture
def bank(tmp_path: Path, tiny_bank: Path) -> Path:
    """A bank of one adapter, ``red``."""
    shutil.copytree(tiny_bank / "red", tmp_path / "bank" / "red")
    return tmp_path / "bank"


def add(bank: Path, **tensors: torch.Tensor) -> None:
    path = bank / "red" / WEIGHTS
    names = {f"base_model.model.{name}": tensor.clone() for name, tensor in tensors.items()}
    save_file(load_file(path) | names, path)


def checked(bank: Path, model: Path, values: bool = True) -> AdapterBank:
    return load_bank(bank, None, load_config(str(model)), str(model), values=values)


def own(model: Path, name: str) -> torch.Tensor:
    tensor: torch.Tensor = load_file(model / "model.safetensors")[name]
    return tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_that_equals_the_weight_is_left_out(bank: Path, tiny_model: Path, dtype: torch.dtype) -> None:
    before = {name: weights.A for name, weights in checked(bank, tiny_model).adapters["red"].modules.items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"):
        add(bank, **{name: own(tiny_model, name).to(dtype)})
    found = checked(bank, tiny_model)
    assert found.adapters["red"].modules.keys() == before.keys()
    assert found.modules == sorted(before)
    FusedLora(load_model(str(tiny_model), "fp32"), found).detach()
    FusedLora(load_model(str(tiny_model), "bf16"), found).detach()


WRONG = {
    "changed": (lambda w: w + torch.eye(*w.shape) * 0.1, "carries model.embed_tokens.weight, and training changed it"),
    "NaN": (lambda w: w * float("nan"), "training changed it"),
    "more tokens": (lambda w: torch.cat([w, w[:2]]), "was trained with a vocabulary of 642 tokens"),
    "fewer tokens": (lambda w: w[:600], "was trained with a vocabulary of 600 tokens"),
    "narrower": (lambda w: w[:, :8], "carries model.embed_tokens.weight of shape [640, 8], the model model"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_another_weight_is_refused_before_the_model_is_loaded_and_by_the_engine(
    bank: Path, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    change, said = WRONG[kind]
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    add(bank, **{"model.embed_tokens.weight": change(own(model, "model.embed_tokens.weight"))})
    with user_error("bank: adapter 'red' ", said, "model.path" if kind != "NaN" else "", str(bank / "red")):
        checked(bank, model)
    loaded = load_model(str(model), "fp32")
    with pytest.raises(UserError, match=f"adapter 'red' .*{said[:20]}"):
        FusedLora(loaded, AdapterBank.load(bank))


@pytest.mark.parametrize("name", ["score.weight", "classifier.bias", "model.layers.9.mlp.up_proj.weight"])
def test_a_weight_that_the_model_does_not_have_is_refused(bank: Path, tiny_model: Path, name: str) -> None:
    add(bank, **{name: torch.zeros(2, 48)})
    with user_error("'red'", f"carries {name}, which the model", "another kind of model"):
        checked(bank, tiny_model)


def test_a_bank_without_values_is_compared_by_shape_alone(bank: Path, tiny_model: Path) -> None:
    embedding = own(tiny_model, "model.embed_tokens.weight")
    add(bank, **{"model.embed_tokens.weight": embedding + 1})
    checked(bank, tiny_model, values=False)
    with user_error("training changed it"):
        checked(bank, tiny_model)
    add(bank, **{"model.embed_tokens.weight": embedding[:9]})
    with user_error("vocabulary of 9 tokens"):
        checked(bank, tiny_model, values=False)


def test_stored_weights_are_those_of_the_loaded_model(tmp_path: Path) -> None:
    for kind, config in {"tied": tiny.llama_config(tie_word_embeddings=True), "gpt2": tiny.gpt2_config()}.items():
        folder = str(tiny.make_model(tmp_path / kind, config))
        model, stored = load_model(folder, "fp32"), StoredWeights(folder, load_skeleton(load_config(folder)))
        for name, weight in model.state_dict().items():
            found = stored.get(name)
            assert found is not None
            assert torch.equal(found, weight), name
        assert stored.get("lm_head.bias") is None
        unknown = StoredWeights("org/name", load_skeleton(load_config(folder))).get("lm_head.weight")
        assert unknown is not None
        assert unknown.is_meta
