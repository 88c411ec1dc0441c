"""The files of an adapter and the folders around it: shards, files that are something else, outputs of trainings."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.adapters import AdapterBank, adapter_names
from tests.adapters.make import LFS_POINTER, SHAPES, Q, make_adapter, make_tensors
from tests.adapters.peft_cases import sharded
from tests.storage import user_error

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
INDEX = f"{WEIGHTS}.index.json"
SHARDS = [f"adapter_model-0000{n}-of-00002.safetensors" for n in (1, 2)]


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """A bank of one adapter, ``legal``, whose weights are in two shards."""
    make_adapter(tmp_path / "bank" / "legal")
    sharded(True)(tmp_path / "bank" / "legal")
    return tmp_path / "bank"


def test_shards_are_read_as_one_file(bank: Path) -> None:
    modules = AdapterBank.load(bank).adapters["legal"].modules
    assert set(modules) == set(SHAPES)
    for module, weights in modules.items():
        assert torch.equal(weights.A, make_tensors()[f"base_model.model.{module}.lora_A.weight"])
        assert torch.equal(weights.B, make_tensors()[f"base_model.model.{module}.lora_B.weight"])


@pytest.mark.parametrize("shard", SHARDS)
def test_the_fingerprint_changes_with_each_shard(bank: Path, shard: str) -> None:
    before = AdapterBank.load(bank).fingerprint
    path = bank / "legal" / shard
    save_file({key: tensor + 1 for key, tensor in load_file(path).items()}, path)
    assert AdapterBank.load(bank).fingerprint != before


def set_map(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return edit


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard that is gone": (lambda f: (f / SHARDS[1]).unlink(), f"{INDEX} lists {SHARDS[1]}, missing here"),
    "a tensor that no shard has": (
        set_map(lambda shards: shards.update({"more.lora_A.weight": SHARDS[0]})),
        "its index lists 'more.lora_A.weight', which no shard holds",
    ),
    "a path": (set_map(lambda shards: shards.update(x="../x.safetensors")), "'../x.safetensors' is no name of a shard"),
    "a hidden file": (set_map(lambda shards: shards.update(x=".safetensors")), "is no name of a shard"),
    "a number": (set_map(lambda shards: shards.update(x=[1])), "[1] is no name of a shard"),
    "no map": (lambda f: (f / INDEX).write_text("{}"), f"cannot read {INDEX}: it has no weight_map"),
    "a list": (lambda f: (f / INDEX).write_text("[]"), "it has no weight_map"),
    "an empty map": (lambda f: (f / INDEX).write_text('{"weight_map": {}}'), "without their index"),
    "a pointer as index": (lambda f: (f / INDEX).write_text(LFS_POINTER), "it is a Git LFS pointer"),
    "a pointer as shard": (lambda f: (f / SHARDS[0]).write_text(LFS_POINTER), f"{SHARDS[0]} is not a safetensors file"),
    "one tensor in two shards": (lambda f: shutil.copy(f / SHARDS[0], f / SHARDS[1]), "repeats one of another name"),
}


@pytest.mark.parametrize("case", WRONG)
def test_shards_that_do_not_belong_together_are_refused(bank: Path, case: str) -> None:
    break_it, said = WRONG[case]
    break_it(bank / "legal")
    with user_error("'legal'", said, str(bank / "legal")):
        AdapterBank.load(bank)


LOOKS: dict[str, tuple[bytes, str]] = {
    "a Git LFS pointer": (LFS_POINTER.encode(), "it is a Git LFS pointer, not the file itself; run git lfs pull"),
    "one with Windows line ends": (b"\xef\xbb\xbf" + LFS_POINTER.replace("\n", "\r\n").encode(), "Git LFS pointer"),
    "a web page": (b"\n<!DOCTYPE html><html>" + b" " * 99, "it is a web page or the error of a store; download"),
    "a file of torch.save": (b"PK\x03\x04" + b"\0" * 99, "it is a zip or a pickle of torch.save"),
    "a pickle": (b"\x80\x02}q\x00(X" + b"\xff" * 99, "it is a pickle"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\xff" + b"\xff" * 99, "it is compressed with gzip"),
    "nothing": (b"", "it has 0 bytes and no header; copy it again"),
    "the start of it": (b"\x80\x02\0\0\0\0\0\0{", "its header would have 640 bytes, the file has 9; copy it again"),
    "half of it": (b"\x10\x20\0\0\0\0\0\0{", "its header would have 8208 bytes, the file has 9; copy it again"),
}


@pytest.mark.parametrize("look", LOOKS)
def test_weights_that_are_another_file_are_named(tmp_path: Path, look: str) -> None:
    content, said = LOOKS[look]
    (make_adapter(tmp_path / "legal") / WEIGHTS).write_bytes(content)
    with user_error("'legal'", WEIGHTS, said, str(tmp_path / "legal")):
        AdapterBank.load(tmp_path)


@pytest.mark.parametrize("look", ["a Git LFS pointer", "a web page", "gzip"])
def test_a_config_that_is_another_file_is_named(tmp_path: Path, look: str) -> None:
    content, said = LOOKS[look]
    (make_adapter(tmp_path / "legal") / CONFIG).write_bytes(content)
    with user_error("'legal'", CONFIG, said, str(tmp_path / "legal")):
        AdapterBank.load(tmp_path)


@pytest.mark.parametrize("inside", [[], ["checkpoint-500"], ["legal"]])  # PEFT saves a second adapter below the first
def test_an_adapter_in_the_place_of_a_bank_is_refused(tmp_path: Path, inside: list[str]) -> None:
    bank = make_adapter(tmp_path / "bank")
    for name in inside:
        make_adapter(bank / name)
    with user_error(str(bank), "is an adapter itself", "move it into a sub-folder", "bank.adapters"):
        AdapterBank.load(bank)
    assert AdapterBank.load(bank, inside).names == inside


@pytest.mark.parametrize("name", ["checkpoint-500", "global_step100", "epoch_3", "step-7", "best"])
def test_the_output_of_a_training_in_a_bank_is_refused_unless_it_is_left_out(tmp_path: Path, name: str) -> None:
    make_adapter(tmp_path / "med")
    make_adapter(tmp_path / "legal" / name)
    assert adapter_names(tmp_path) == ["legal", "med"]
    for only in (None, ["legal"]):
        with user_error("'legal'", "output of a training", name, "copy the files", str(tmp_path / "legal")):
            AdapterBank.load(tmp_path, only)
    assert AdapterBank.load(tmp_path, ["med"]).names == ["med"]
    shutil.copytree(tmp_path / "legal" / name, tmp_path / "legal", dirs_exist_ok=True)
    assert AdapterBank.load(tmp_path).names == ["legal", "med"]


def test_the_output_of_a_training_in_the_place_of_a_bank_is_refused_unless_a_state_is_named(tmp_path: Path) -> None:
    for name in ("checkpoint-500", "checkpoint-1000"):
        make_adapter(tmp_path / name)
    with user_error(str(tmp_path), "checkpoint-1000, checkpoint-500 are states of one adapter", "bank.adapters"):
        AdapterBank.load(tmp_path)
    assert AdapterBank.load(tmp_path, ["checkpoint-500"]).names == ["checkpoint-500"]
    make_adapter(tmp_path / "legal")
    assert AdapterBank.load(tmp_path).names == ["checkpoint-1000", "checkpoint-500", "legal"]


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_model.bin", SHARDS[0]])
def test_weights_without_their_config_are_not_passed_over(tmp_path: Path, name: str) -> None:
    make_adapter(tmp_path / "med")
    (tmp_path / "legal").mkdir()
    (tmp_path / "legal" / name).write_bytes(b"")
    assert adapter_names(tmp_path) == ["legal", "med"]
    with user_error("'legal'", f"it has no {CONFIG}; copy that too", str(tmp_path / "legal")):
        AdapterBank.load(tmp_path)


def test_packed_adapters_are_named(tmp_path: Path) -> None:
    (tmp_path / "legal.zip").write_bytes(b"PK")
    with user_error("no adapter in", "; unpack legal.zip (bank.path)"):
        AdapterBank.load(tmp_path)
    with user_error(f"{tmp_path}/legal.zip is a file", "unpack it"):
        AdapterBank.load(tmp_path / "legal.zip")


def test_a_folder_of_other_adapters_in_a_bank_is_none(tmp_path: Path) -> None:
    make_adapter(tmp_path / "med")
    make_adapter(tmp_path / "archive" / "old")
    assert AdapterBank.load(tmp_path).names == ["med"]


def test_a_bank_one_level_deeper_is_named(tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapters" / "legal")
    with user_error("no adapter in", "; adapters in it has some: give that folder (bank.path)"):
        AdapterBank.load(tmp_path)


OTHERS = {
    "model.safetensors": "but model.safetensors; rename the file",
    "adapter_model.bin": "but adapter_model.bin: pickle is refused",
    "consolidated.00.pth": "but consolidated.00.pth: pickle is refused",
    SHARDS[0]: f"but shards ({SHARDS[0]}) without their index {INDEX}",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_there_in_the_place_of_weights_is_named(tmp_path: Path, name: str) -> None:
    folder = make_adapter(tmp_path / "legal")
    (folder / WEIGHTS).rename(folder / name)
    with user_error("'legal'", f"it has no {WEIGHTS}, {OTHERS[name]}", str(folder)):
        AdapterBank.load(tmp_path)


def hand_saved(names: list[str]) -> dict[str, torch.Tensor]:
    return {
        key.replace(".weight", f".{name}.weight"): tensor
        for number, name in enumerate(names)
        for key, tensor in make_tensors(seed=number).items()
    }


@pytest.mark.parametrize("name", ["default", "legal", "weights", "v1-2"])
def test_the_name_of_the_adapter_in_keys_is_left_out(tmp_path: Path, name: str) -> None:
    make_adapter(tmp_path / "legal", hand_saved([name]))
    modules = AdapterBank.load(tmp_path).adapters["legal"].modules
    assert set(modules) == set(SHAPES)
    assert torch.equal(modules[Q].A, make_tensors()[f"base_model.model.{Q}.lora_A.weight"])


@pytest.mark.parametrize("name", ["module.base_model.model", "base_model.model._orig_mod", "_fsdp_wrapped_module"])
def test_what_wrapped_the_model_in_training_is_left_out_of_keys(tmp_path: Path, name: str) -> None:
    keys = {key.replace("base_model.model", name): tensor for key, tensor in make_tensors().items()}
    make_adapter(tmp_path / "legal", keys)
    assert set(AdapterBank.load(tmp_path).adapters["legal"].modules) == set(SHAPES)


def test_keys_of_several_adapters_are_refused(tmp_path: Path) -> None:
    make_adapter(tmp_path / "legal", hand_saved(["default", "med"]))
    with user_error("'legal'", "it holds several adapters: default, med; save each"):
        AdapterBank.load(tmp_path)
    half = {key: tensor for key, tensor in hand_saved(["default"]).items() if Q in key}
    rest = {key: tensor for key, tensor in make_tensors().items() if Q not in key}
    make_adapter(tmp_path / "legal", half | rest)
    with user_error("'legal'", "it holds several adapters: default, one without a name"):
        AdapterBank.load(tmp_path)
