"""The token embeddings of a model, read without the rest of it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file
from transformers import AutoModelForCausalLM

from pipeline.models import load_token_embeddings
from tests import tiny
from tests.storage import user_error


@pytest.mark.long
@pytest.mark.parametrize("config", [tiny.llama_config(), tiny.gpt2_config()], ids=["llama", "gpt2"])
def test_they_are_those_of_the_loaded_model(tmp_path: Path, config: object) -> None:
    folder = str(tiny.make_model(tmp_path, config))  # type: ignore[arg-type]
    expected = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    assert torch.equal(load_token_embeddings(folder), expected)


@pytest.mark.long
def test_a_model_without_them_is_refused(tmp_path: Path) -> None:
    folder = tiny.make_model(tmp_path)
    tensors = load((folder / "model.safetensors").read_bytes())
    save_file({n: t for n, t in tensors.items() if "embed_tokens" not in n}, folder / "model.safetensors")
    with user_error("model: ", str(folder), "embed_tokens.weight"):
        load_token_embeddings(str(folder))
