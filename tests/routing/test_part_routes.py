"""Cutting many prompts with a real router."""

from pathlib import Path

import pytest

from pipeline.conversations import last_text
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.records import Conversation
from pipeline.routing import PartSettings, RoutingPolicy
from pipeline.routing.loading import load_router
from pipeline.routing.part_routes import PartCutter, PromptPart
from tests import tiny


@pytest.fixture(scope="module")
def cutter(tiny_model: Path, tiny_router: Path) -> PartCutter:
    form = PromptFormat(load_tokenizer(str(tiny_model)))
    return PartCutter(form, load_router(str(tiny_router)), RoutingPolicy(), PartSettings())


def question(adapter: str, seed: int = 0) -> str:
    return tiny.prompts_of(adapter, 6, seed)[5]


RED, COLD, TALL = map(question, ("red", "cold", "tall"))


@pytest.mark.parametrize(
    ("prompt", "parts"),
    [
        (f"1. {RED}\n2. {COLD}", [(RED, "1."), (COLD, "2.")]),
        (f"Do it all.\n\n- {RED}\n\n- {COLD}\n", [(RED, "-"), (COLD, "-")]),
        (f"One. Two.\n- {RED}\n- {COLD}", [(f"One. Two.\n{RED}", "-"), (f"One. Two.\n{COLD}", "-")]),
        (f"1. {RED}\n2. {RED}\n3. {COLD}", [(f"1. {RED}\n2. {RED}", ""), (COLD, "3.")]),
        (f"1.\n{RED}\n2.\n{COLD}\n3. ", [(RED, "1."), (COLD, "2.")]),
        (f"1.\n{RED}\n2.\n\n3. {RED}\n4. {COLD}", [(RED, "1."), (RED, "3."), (COLD, "4.")]),
        (f"{RED}\n\n{COLD}\n\n{TALL}", [(RED, ""), (COLD, ""), (TALL, "")]),
        (f"(a) {RED} (b) {COLD}", [(RED, "(a)"), (COLD, "(b)")]),
        (f"{RED}\n{RED}\n{COLD}\n{COLD}", [(f"{RED}\n{RED}", ""), (f"{COLD}\n{COLD}", "")]),
    ],
)
def test_prompts_are_cut(cutter: PartCutter, prompt: str, parts: list[tuple[str, str]]) -> None:
    assert cutter.cut([prompt]) == [[PromptPart(text, mark) for text, mark in parts]]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        " \n\n ",
        RED,
        f"- {RED}\n- {RED}\n\n{RED}",
        f"1. {RED}\n\n{RED}",
        f"1. {RED}\n2. ",
        f"1. {RED}\n2. " + f"{COLD} " * 1000,
        "".join(f"- {question(name, seed)}\n" for seed in range(7) for name in tiny.ADAPTERS),
    ],
    ids=["empty", "blank", "one", "one class", "one item", "one item with text", "document", "data"],
)
def test_other_prompts_stay_as_they_are(cutter: PartCutter, prompt: str) -> None:
    assert cutter.cut([prompt]) == [[PromptPart(prompt)]]


def test_prompts_do_not_depend_on_those_they_are_cut_with(cutter: PartCutter) -> None:
    prompts = [
        f"1. {question(first, seed)}\n2. {question(second, seed)}" if seed % 3 else f"{question(first, seed)}\n{first}1"
        for seed in range(12)
        for first, second in zip(tiny.ADAPTERS, reversed(tiny.ADAPTERS), strict=True)
    ]
    together = cutter.cut(prompts)
    assert together == [parts for prompt in prompts for parts in cutter.cut([prompt])]
    assert {len(parts) for parts in together} == {1, 2}


def test_the_last_text_of_a_conversation_is_the_users() -> None:
    assert last_text(Conversation([{"role": "user", "content": "a"}])) == "a"
    assert last_text(Conversation([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])) is None
