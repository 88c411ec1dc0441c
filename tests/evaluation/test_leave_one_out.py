"""Ways to answer a task without its own adapter."""

import json
from pathlib import Path

import pytest

from pipeline.conversations import PromptSettings
from pipeline.evaluation.configurations import Configuration, TokenizedQuestion
from pipeline.evaluation.leave_one_out import few_shot, leave_one_out, oracle, random_adapters, read_examples
from pipeline.evaluation.suite import Question
from pipeline.models import PromptFormat, load_tokenizer
from pipeline.records import Mixture
from pipeline.routing import RoutingPolicy
from pipeline.routing.mlp_router import MlpRouter
from tests.routing import LABELS, make_prompts, make_router


@pytest.fixture(scope="module")
def router() -> MlpRouter:
    return make_router(epochs=2)


@pytest.fixture(scope="module")
def questions() -> list[TokenizedQuestion]:
    prompts, labels = make_prompts(40, seed=3)
    found = [Question(str(i), label, "qa", ("x",), (label,), "p") for i, label in enumerate(labels)]
    return [TokenizedQuestion(*pair) for pair in zip(found, prompts, strict=True)]


def mixtures(router: MlpRouter, questions: list[TokenizedQuestion], policy: RoutingPolicy) -> dict[str, list[Mixture]]:
    compared = leave_one_out(router, policy) + oracle([one.question for one in questions], LABELS)
    return {one.name: [asked.mixture for asked in one.asked(questions)] for one in compared}


def test_no_question_gets_its_own_adapter_but_from_the_oracle(
    router: MlpRouter, questions: list[TokenizedQuestion]
) -> None:
    found = mixtures(router, questions, RoutingPolicy(fallback="nearest"))
    tasks = [one.question.group for one in questions]
    assert found.pop("own adapter") == [Mixture.of({task: 1.0}) for task in tasks]
    assert found.pop("base") == [Mixture()] * len(questions)
    assert set(found) == {"nearest 1", "nearest 3", "random 1", "random 3", "all others", "routed, fallback=nearest"}
    for name, chosen in found.items():
        assert all(set(m.adapters) <= set(LABELS) - {task} for m, task in zip(chosen, tasks, strict=True)), name
        assert all(sum(m.weights) == 1 for m in chosen)
    sizes = {name: {len(m.adapters) for m in chosen} for name, chosen in found.items()}
    assert sizes["nearest 1"] == sizes["random 1"] == {1}
    assert sizes["nearest 3"] == sizes["random 3"] == sizes["all others"] == {2}  # two of three adapters are left
    assert len(set(found["random 1"])) == len(LABELS)


def test_the_nearest_is_the_likeliest_of_the_other_classes(
    router: MlpRouter, questions: list[TokenizedQuestion]
) -> None:
    found = mixtures(router, questions, RoutingPolicy())
    for one, mixture in zip(questions, found["nearest 1"], strict=True):
        [row] = router.probabilities(router.embed([one.tokens])).tolist()
        others = {p: label for p, label in zip(row, LABELS, strict=True) if label != one.question.group}
        assert mixture.adapters == (others[max(others)],)


def test_a_task_without_an_adapter_has_no_oracle() -> None:
    known, unknown = (Question("a", task, "qa", ("x",), (task,), "p") for task in ("art", "poetry"))
    assert [one.name for one in oracle([known], LABELS)] == ["own adapter"]
    assert oracle([known, unknown], LABELS) == []


def test_random_adapters_are_drawn_by_id() -> None:
    labels = [f"t{i}" for i in range(20)]
    questions = [Question(str(i), "t0", "qa", ("x",), ("t0",)) for i in range(30)]
    drawn = [random_adapters(labels, one, 3) for one in questions]
    assert drawn == [random_adapters(labels[::-1], one, 3) for one in questions]
    assert len(set(drawn)) > 25
    assert {len(m.adapters) for m in drawn} == {3}
    assert "t0" not in {name for m in drawn for name in m.adapters}


def asked(configuration: Configuration, prompts: PromptFormat, question: Question) -> str:
    [one] = configuration.asked([TokenizedQuestion(question, [1])])
    [request] = one.requests
    assert request.mixture == Mixture()
    text: str = prompts.tokenizer.decode(request.tokens)
    return text


def test_few_shot_prompts_hold_examples_of_the_own_task_as_many_as_fit(tmp_path: Path, tiny_model: Path) -> None:
    rows = [{"task": task, "prompt": f"{task}{i}?", "answer": f"{task}!"} for task in ("red", "cold") for i in range(5)]
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    question = Question("a", "red", "qa", ("x",), ("red",), "red9?")
    examples = read_examples(str(path), [question])
    assert list(examples) == ["red"]
    assert len(set(examples["red"])) == 3
    tokenizer = load_tokenizer(str(tiny_model))
    raw, chat = PromptFormat(tokenizer, PromptSettings("raw")), PromptFormat(tokenizer, PromptSettings("chat"))
    shots = "".join(f"{prompt}\n{answer}\n\n" for prompt, answer in examples["red"])
    assert asked(few_shot(raw, examples, 200), raw, question) == f"{shots}red9?"
    turns = "".join(f"<|user|>{prompt}\n<|assistant|>{answer}\n" for prompt, answer in examples["red"])
    assert asked(few_shot(chat, examples, 200), chat, question) == f"{turns}<|user|>red9?\n<|assistant|>"
    whole = len(chat.encode(["red9?"])[0])
    short = asked(few_shot(chat, examples, 2 * whole + 30), chat, question)
    assert 2 <= short.count("<|user|>") < 4
    assert short.endswith("<|user|>red9?\n<|assistant|>")
    assert asked(few_shot(chat, examples, whole), chat, question) == "<|user|>red9?\n<|assistant|>"
    variants = {few_shot(chat, examples, limit).variant for limit in (200, whole)}
    assert len(variants) == 2
