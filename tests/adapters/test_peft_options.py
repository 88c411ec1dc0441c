"""What of PEFT is taken, with the right values, and what is refused; docs/add-adapter.md has the table of it."""

import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.engine import FusedLora, load_bank
from pipeline.errors import UserError
from pipeline.models import load_config, load_model
from pipeline.records import Mixture
from tests.adapters.peft_cases import BASES, CASES, TOKENS, Case, make, make_base, others
from tests.docs.blocks import ROOT
from tests.engine.reference import assert_close, logits_of

PAGE = ROOT / "docs" / "add-adapter.md"
HEAD = f"| saved with PEFT {peft.__version__} | |"


class Made(NamedTuple):
    """An adapter: PEFT's logits with it, its bank, its base model, and why it is refused; empty if it is taken."""

    logits: torch.Tensor
    bank: Path
    base: Path
    refusal: str


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make_base(tmp_path_factory.mktemp("bases") / kind / "base", kind) for kind in BASES}


@pytest.fixture(scope="module")
def made(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Made]:
    found: dict[str, Made] = {}

    def make_once(case: Case) -> Made:
        if case.name not in found:
            bank = tmp_path_factory.mktemp("adapter") / "bank"
            logits, base = make(case, bases[case.base], bank / "legal")
            found[case.name] = Made(logits, bank, base, refusal(bank, base))
        return found[case.name]

    return make_once


def refusal(bank: Path, base: Path) -> str:
    """Why the only adapter of a bank is refused, before the model is loaded; empty if it is taken."""
    try:
        load_bank(bank, None, load_config(str(base)), str(base))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_adapter_of_peft_is_computed_as_by_peft_or_refused_by_name(case: Case, made: Callable[[Case], Made]) -> None:
    expected, bank, base, found = made(case)
    if case.refused:
        assert found.startswith("bank: adapter 'legal'")
        assert case.refused in found
        assert "\n" not in found
        assert found.endswith(f"({bank / 'legal'})")
        return
    assert found == ""
    model = load_model(str(base), "fp32")
    plain = logits_of(model, TOKENS[0].tolist())
    fused = FusedLora(model, load_bank(bank, None, model.config, str(base)))
    fused.set_mixtures([Mixture.of({"legal": 1.0})])
    mixed = logits_of(model, TOKENS[0].tolist())
    assert_close(mixed, expected)
    assert (mixed - plain).abs().max() > 1e-3


@pytest.mark.long
@pytest.mark.parametrize("kind", others())
def test_another_method_than_lora_is_refused_by_name(kind: str, bases: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(bases["llama"])
    peft.get_peft_model(model, others()[kind]).save_pretrained(tmp_path / "legal")
    found = refusal(tmp_path, bases["llama"])
    assert found.startswith(f"bank: adapter 'legal': peft_type={kind!r} is another method than LoRA; retrain it")


@pytest.mark.long
def test_the_page_has_the_table_of_what_is_taken(made: Callable[[Case], Made]) -> None:
    expected = table(made)
    assert expected == page_table(), "docs/add-adapter.md must have\n" + "\n".join(expected)


def table(made: Callable[[Case], Made]) -> list[str]:
    """The table, a row for consecutive cases with the same outcome."""
    groups = groupby(CASES, key=lambda case: outcome(made(case)))
    return [HEAD, "| --- | --- |", *(f"| {'<br>'.join(case.name for case in same)} | {how} |" for how, same in groups)]


def outcome(made: Made) -> str:
    if not made.refusal:
        return "taken"
    reason = made.refusal.removeprefix("bank: adapter 'legal'").removeprefix(":").replace(f"({made.bank}/legal)", "")
    return "refused: " + re.sub(r"init_lora_weights='\w+'", "init_lora_weights", reason).strip()


def page_table() -> list[str]:
    text = PAGE.read_text()
    return text[text.index(HEAD) :].split("\n\n")[0].splitlines() if HEAD in text else []
