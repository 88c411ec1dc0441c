from pathlib import Path

import pytest
import torch

from pipeline.adapters.config import read_adapter_config
from pipeline.adapters.weights import ModuleWeights, read_weights
from tests.adapters.make import SHAPES, Q, V, make_adapter, make_tensors, tensor_name
from tests.storage import user_error


def read(folder: Path) -> dict[str, ModuleWeights]:
    return read_weights(folder, read_adapter_config(folder)).modules


def make_changed(folder: Path, **changes: torch.Tensor | None) -> Path:
    """An adapter named legal with some tensors (``q_A``, ...) replaced or, where None, left out."""
    tensors = make_tensors()
    modules = {"q": Q, "v": V}
    for key, tensor in changes.items():
        name = tensor_name(modules[key[0]], key[2])
        tensors.pop(name)
        if tensor is not None:
            tensors[name] = tensor
    return make_adapter(folder / "legal", tensors)


def test_weights_are_read_by_module_as_they_were_saved(tmp_path: Path) -> None:
    read_modules = read(make_adapter(tmp_path / "legal", lora_alpha=8, alpha_pattern={"v_proj": 2}))
    assert set(read_modules) == set(SHAPES)
    tensors = make_tensors()
    for module, weights in read_modules.items():
        assert torch.equal(weights.A, tensors[tensor_name(module, "A")])
        assert torch.equal(weights.B, tensors[tensor_name(module, "B")])
    assert (read_modules[Q].scale, read_modules[V].scale) == (2.0, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_keep_their_type(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = read(make_adapter(tmp_path / "legal", make_tensors(dtype=dtype)))[Q]
    assert weights.A.dtype == weights.B.dtype == dtype


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_weights_are_refused_unread(tmp_path: Path, name: str) -> None:
    folder = make_adapter(tmp_path / "legal")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(make_tensors(), folder / name)
    with user_error("'legal'", name, "pickle", "safetensors", str(folder)):
        read(folder)


def test_a_pickle_beside_safetensors_is_ignored(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "legal")
    (folder / "adapter_model.bin").write_bytes(b"anything")
    assert set(read(folder)) == set(SHAPES)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "legal")
    (folder / "adapter_model.safetensors").unlink()
    with user_error("'legal'", "no adapter_model.safetensors or other weights; copy it again"):
        read(folder)


def test_an_adapter_without_tensors_is_refused(tmp_path: Path) -> None:
    with user_error("'legal'", "no LoRA tensors"):
        read(make_adapter(tmp_path / "legal", {}))


@pytest.mark.parametrize(
    ("key", "tensor"),
    [
        ("q_A", torch.zeros(3, 8)),
        ("q_A", torch.zeros(8, 4)),
        ("q_A", torch.zeros(4)),
        ("q_B", torch.zeros(8, 5)),
        ("q_B", torch.zeros(8, 4, 1)),
    ],
    ids=["smaller rank", "turned", "flat", "larger rank", "convolution"],
)
def test_tensors_of_another_shape_than_the_config_says_are_refused(
    tmp_path: Path, key: str, tensor: torch.Tensor
) -> None:
    with user_error("'legal'", Q, str(list(tensor.shape)), "rank 4"):
        read(make_changed(tmp_path, **{key: tensor}))


@pytest.mark.parametrize(("key", "side"), [("v_A", "lora_A"), ("v_B", "lora_B")])
def test_a_module_with_one_side_only_is_refused(tmp_path: Path, key: str, side: str) -> None:
    with user_error("'legal'", f"{V} lacks {side}"):
        read(make_changed(tmp_path, **{key: None}))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_weights_that_are_no_floats_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    with user_error("'legal'", Q, str(dtype)):
        read(make_changed(tmp_path, q_B=torch.zeros(8, 4, dtype=dtype)))


@pytest.mark.parametrize(
    "name",
    [
        f"base_model.model.{Q}.lora_magnitude_vector",
        f"base_model.model.{Q}.lora_embedding_A",
        f"base_model.model.{Q}.lora_A.default.weight",
        f"base_model.model.{Q}.lora_A.a.b.weight.x",
        f"base_model.model.{Q}.lora_A",
        f"base_model.model.{Q}.lora_A.bias",
        f"base_model.model.{Q}.lora_B.bias",
        f"base_model.model.{Q}.lora_E",
        f"{Q}.lora_A.weight",
    ],
)
def test_a_tensor_that_is_unknown_or_repeated_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with user_error("'legal'", "default" if ".default." in name else name):
        read(make_adapter(tmp_path / "legal", {**make_tensors(), name: torch.zeros(4, 8)}))


VECTORS = [("use_dora", "lora_magnitude_vector", "magnitude"), ("lora_bias", "lora_B.bias", "bias")]


@pytest.mark.parametrize(("key", "part", "name"), VECTORS)
def test_vectors_that_the_config_announces_are_read_and_must_be_there(
    tmp_path: Path, key: str, part: str, name: str
) -> None:
    vectors = {f"base_model.model.{m}.{part}": torch.arange(out).float() for m, (_, out) in SHAPES.items()}
    found = read(make_adapter(tmp_path / "legal", {**make_tensors(), **vectors}, **{key: True}))
    assert {m: getattr(w, name).tolist() for m, w in found.items()} == {m: [*range(o)] for m, (_, o) in SHAPES.items()}
    vectors.pop(f"base_model.model.{V}.{part}")
    with user_error("'legal'", V, f"no {name} vector"):
        read(make_adapter(tmp_path / "legal", {**make_tensors(), **vectors}, **{key: True}))
    vectors[f"base_model.model.{V}.{part}"] = torch.zeros(7)
    with user_error("'legal'", V, f"{name} [7]"):
        read(make_adapter(tmp_path / "legal", {**make_tensors(), **vectors}, **{key: True}))


COPIES = {
    "model.embed_tokens.base_layer.weight": "model.embed_tokens.weight",
    "lm_head.weight": "lm_head.weight",
    "lm_head.modules_to_save.weight": "lm_head.weight",
    "lm_head.modules_to_save.default.weight": "lm_head.weight",
    f"{Q}.base_layer.bias": f"{Q}.bias",
    f"{Q}.bias": f"{Q}.bias",
}


@pytest.mark.parametrize(("key", "name"), COPIES.items())
def test_weights_of_the_base_model_are_read_by_their_names_there(tmp_path: Path, key: str, name: str) -> None:
    folder = make_adapter(tmp_path / "legal", {**make_tensors(), f"base_model.model.{key}": torch.ones(20)})
    found = read_weights(folder, read_adapter_config(folder))
    assert set(found.modules) == set(SHAPES)
    assert {copied: tensor.tolist() for copied, tensor in found.copies.items()} == {name: [1.0] * 20}


def test_an_embedding_is_read_as_one(tmp_path: Path) -> None:
    name = "base_model.model.model.embed_tokens"
    tensors = {f"{name}.lora_embedding_A": torch.zeros(4, 20), f"{name}.lora_embedding_B": torch.zeros(8, 4)}
    assert read(make_adapter(tmp_path / "legal", tensors))["model.embed_tokens"].embedding


@pytest.mark.parametrize("cut", [0, 4, 100, -1])
def test_a_damaged_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = make_adapter(tmp_path / "legal") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with user_error("'legal'", "adapter_model.safetensors"):
        read(path.parent)


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path: Path) -> None:
    path = make_adapter(tmp_path / "legal") / "adapter_model.safetensors"
    torch.save(make_tensors(), path)
    with user_error("'legal'", "adapter_model.safetensors"):
        read(path.parent)
