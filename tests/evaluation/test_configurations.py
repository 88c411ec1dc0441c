"""Prompts that an evaluation asks in parts."""

from pathlib import Path

from pipeline.evaluation.configurations import Asked, TokenizedQuestion, part_configurations
from pipeline.evaluation.suite import Question
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.records import Mixture
from pipeline.routing import PartSettings, RoutingPolicy
from pipeline.routing.loading import load_router
from tests import tiny


def asked(model: Path, router: Path, *prompts: str, name: str = "parts") -> list[Asked]:
    form = PromptFormat(load_tokenizer(str(model)))
    tokens = form.encode(prompts)
    questions = [
        TokenizedQuestion(Question(f"q{i}", "composite2", "composite", ("a", "b"), prompt=prompt), ids)
        for i, (prompt, ids) in enumerate(zip(prompts, tokens, strict=True))
    ]
    found = part_configurations(form, load_router(str(router)), RoutingPolicy(), PartSettings())
    return {one.name: one for one in found}[name].asked(questions)


def test_a_question_is_asked_in_parts_and_its_answers_are_joined(tiny_model: Path, tiny_router: Path) -> None:
    red, cold = (tiny.prompts_of(name, 6)[5] for name in ("red", "cold"))
    both, one, again = asked(tiny_model, tiny_router, f"1. {red}\n2. {cold}", red, f"1. {cold}\n2. {red}")
    form = PromptFormat(load_tokenizer(str(tiny_model)))
    assert [list(request.tokens) for request in both.requests] == form.encode([red, cold])
    assert [request.mixture.key for request in both.requests] == ["red:1.0", "cold:1.0"]
    assert both.mixture == Mixture.of({"red": 0.5, "cold": 0.5})
    assert both.join(["yes", "no"]) == "1. yes\n2. no"
    [plain] = asked(tiny_model, tiny_router, f"1. {red}\n2. {cold}", name="parts without marks")
    assert (plain.requests, plain.join(["yes", "no"])) == (both.requests, "yes\nno")
    assert (one.requests[0].id, one.join(["yes"])) == ("q1", "yes")
    ids = [request.id for some in (both, one, again) for request in some.requests]
    assert len(set(ids)) == len(ids), "answers are stored by id and mixture"
