"""Folders that are no model, or a part of one: each is refused before any work, with what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config

from pipeline.engine.registry import BACKENDS
from pipeline.models import check_weights, load_config, load_model, load_skeleton, load_tokenizer, resolve_model
from tests import tiny
from tests.adapters.make import LFS_POINTER
from tests.storage import user_error

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny.make_model(tmp_path / "model")


def check(folder: Path) -> None:
    """Check a folder as a job with the native engine does."""
    config = load_config(str(folder))
    check_weights(str(folder))
    BACKENDS["native"].check_model(str(folder), config)
    load_tokenizer(str(folder))


def write(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def sharded(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    shards = {key: SHARDS[number % 2] for number, key in enumerate(sorted(tensors))}
    for name in SHARDS:
        save_file({k: tensors[k] for k, at in shards.items() if at == name}, folder / name, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def shards_without(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        sharded(folder)
        (folder / name).unlink()

    return edit


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def quantised(method: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        stored = {"quant_method": method, "bits": 4, "group_size": 128, "load_in_4bit": True}
        (folder / "config.json").write_text(json.dumps(config | {"quantization_config": stored}))

    return edit


def gguf_alone(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "q4.gguf").write_bytes(b"GGUF")


WRONG: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "an adapter's config": (write("adapter_config.json", "{}"), ("it is an adapter, not a base model",)),
    "no config": (lambda f: (f / "config.json").unlink(), ("has no config.json: it is no model",)),
    "GGUF in a folder": (gguf_alone, ("has no config.json, but q4.gguf: give that file",)),
    "a pointer as config": (write("config.json", LFS_POINTER), ("config.json: it is a Git LFS pointer",)),
    "a pointer as tokenizer": (write("tokenizer.json", LFS_POINTER), ("tokenizer.json: it is a Git LFS pointer",)),
    "no tokenizer": (without_tokenizer, ("has no tokenizer; copy the one of its base model",)),
    "a pointer as generation config": (
        write("generation_config.json", LFS_POINTER),
        ("generation_config.json cannot be read: it is a Git LFS pointer",),
    ),
    "half a generation config": (write("generation_config.json", '{"eos'), ("generation_config.json cannot be read",)),
    "a missing shard": (shards_without(SHARDS[1]), (INDEX, f"it lists {SHARDS[1]}, missing here; copy all files")),
    "a list as index": (lambda f: (sharded(f), (f / INDEX).write_text("[]")), (INDEX, "cannot be read")),
    "shards without index": (shards_without(INDEX), ("has neither", INDEX)),
    **{
        f"stored in {method}": (quantised(method), (f"stored quantised with {method}", "unquantised weights"))
        for method in ("awq", "gptq", "fp8", "compressed-tensors")
    },
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_whole_model_is_refused_before_it_is_loaded(model: Path, case: str) -> None:
    edit, said = WRONG[case]
    edit(model)
    with user_error("model: ", str(model), *said):
        check(model)


@pytest.mark.parametrize("edit", [lambda folder: None, sharded, quantised("bitsandbytes")])
def test_a_whole_model_passes(model: Path, edit: Callable[[Path], None]) -> None:
    edit(model)
    check(model)


@pytest.mark.long
def test_a_weight_that_no_file_holds_is_refused_and_not_made_up(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, model / WEIGHTS, {"format": "pt"})
    with user_error("model: ", str(model), "lacks the weights model.layers.1.mlp.up_proj.weight"):
        load_model(str(model), "fp32")


@pytest.mark.long
def test_weights_of_another_vocabulary_are_refused(model: Path) -> None:
    tensors = load_file(model / WEIGHTS)
    rows = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"model.embed_tokens.weight": torch.cat([rows, rows[:8]])}, model / WEIGHTS, {"format": "pt"})
    with user_error("model: ", str(model)):
        load_model(str(model), "fp32")


def test_a_model_of_another_kind_is_refused() -> None:
    config: Any = T5Config()
    with user_error("model: cannot load", "T5Config"):
        load_skeleton(config)


@pytest.mark.parametrize(
    ("content", "said"),
    [(LFS_POINTER.encode(), "it is a Git LFS pointer"), (b"", "empty"), (b"GGUF\x03\0\0\0" + bytes(16), "general")],
)
def test_a_gguf_file_that_cannot_be_converted_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    monkeypatch.setenv("LORALOOM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(content)
    with user_error(f"model: cannot convert {tmp_path}/model.gguf", said):
        resolve_model(str(tmp_path / "model.gguf"))
