"""Prompts as token ids."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.conversations import PromptSettings
from pipeline.errors import UserError
from pipeline.models import PromptError, PromptFormat, load_tokenizer, resolve_model
from pipeline.records import Conversation
from tests.adapters.make import LFS_POINTER
from tests.storage import user_error


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


def test_raw_prompts_and_messages_keep_their_order(tokenizer: Any) -> None:
    prompts = ["red1", Conversation([{"role": "user", "content": "cold2"}]), "tall3"]
    texts = [tokenizer.decode(ids) for ids in PromptFormat(tokenizer, PromptSettings("raw")).encode(prompts)]
    assert texts == ["red1", "<|user|>cold2\n<|assistant|>", "tall3"]


def test_chat_mode_makes_a_prompt_one_user_message(tokenizer: Any) -> None:
    chat = PromptFormat(tokenizer, PromptSettings("chat"))
    assert chat.encode(["red1"]) == chat.encode([Conversation([{"role": "user", "content": "red1"}])])


def test_answers_end_with_the_end_token(tokenizer: Any) -> None:
    [ids] = PromptFormat(tokenizer).encode_answer(["red1"])
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "red1"


def test_chat_mode_without_a_template_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="prompt_format=raw"):
        PromptFormat(tokenizer, PromptSettings("chat"))


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LFS_POINTER, "the chat template leaves out 'user'"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ raise_exception('no system prompt') }}", "no system prompt"),
    ],
)
def test_a_template_that_does_not_write_the_prompt_is_refused(tokenizer: Any, template: str, said: str) -> None:
    tokenizer.chat_template = template
    with user_error("model: the chat template does not take a prompt as a user message: ", said):
        PromptFormat(tokenizer, PromptSettings("chat"))
    raw = PromptFormat(tokenizer, PromptSettings("raw"))
    assert tokenizer.decode(raw.encode(["red1"])[0]) == "red1"
    with pytest.raises(PromptError, match=said):
        raw.encode([Conversation([{"role": "user", "content": "red1"}])])


@pytest.mark.parametrize("reference", ["package:nothing_here/a.gguf", "/nowhere", "/nowhere/a.gguf", "three/part/name"])
def test_references_to_nothing_are_refused(reference: str) -> None:
    with pytest.raises(UserError, match="model: "):
        resolve_model(reference)


def test_folders_and_hub_ids_are_left_as_they_are(tiny_model: Path) -> None:
    assert resolve_model(str(tiny_model)) == str(tiny_model)
    assert resolve_model("org/name") == "org/name"
