"""Ways to answer the prompts of a task that has no adapter: each question's own adapter is left out.

The router is asked as if it did not know the task (`Router.without`).
"""

import hashlib
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.engine import Request
from pipeline.models import PromptFormat
from pipeline.records import Conversation, Mixture, Prompt
from pipeline.routing import RoutingPolicy
from pipeline.routing.policy import blend
from pipeline.routing.router import Router
from pipeline.storage.input.labelled import read_table

from .configurations import Asked, Configuration, TokenizedQuestion, by_question, by_router, own_adapters
from .suite import Question

_SHOTS = 3  # examples in the prompt of the few-shot control

Examples = Mapping[str, Sequence[tuple[str, str]]]
"""Prompts and answers by task, `_SHOTS` of each at most."""


def leave_one_out(router: Router, policy: RoutingPolicy) -> list[Configuration]:
    """List the base model, the fallbacks, random adapters, and a job's own way: gate, top-p and ``policy.fallback``.

    Every fallback but the last is given to all prompts, as if the gate rejected them.
    """

    def fallback(name: str, policy: RoutingPolicy) -> Configuration:
        def choose(router: Router, prompts: Sequence[Sequence[int]]) -> list[Mixture]:
            return policy.fallbacks(router.classify(prompts, policy.acceptance).probabilities, router.labels)

        return by_router(name, router, choose, leave_out=True)

    def routed(router: Router, prompts: Sequence[Sequence[int]]) -> list[Mixture]:
        return [route.mixture for route in router.route(prompts, policy)]

    return [
        by_question("base", lambda question: Mixture()),
        fallback("nearest 1", replace(policy, fallback="nearest", max_adapters=1)),
        fallback("nearest 3", replace(policy, fallback="nearest")),
        by_question("random 1", lambda question: random_adapters(router.labels, question, 1)),
        by_question("random 3", lambda question: random_adapters(router.labels, question, 3)),
        fallback("all others", replace(policy, fallback="all")),
        by_router(f"routed, fallback={policy.fallback}", router, routed, leave_out=True),
    ]


def oracle(questions: Sequence[Question], adapters: Sequence[str]) -> list[Configuration]:
    """Answer each question with its own adapter, if all of them have one."""
    has_all = all(task in adapters for question in questions for task in question.tasks)
    return [by_question("own adapter", own_adapters)] if has_all else []


def random_adapters(labels: Sequence[str], question: Question, count: int) -> Mixture:
    """Blend adapters other than the question's own, drawn by its id: each run draws the same."""
    others = sorted(set(labels) - set(question.tasks))
    return blend(random.Random(question.id).sample(others, min(count, len(others))))


def read_examples(url: str, questions: Sequence[Question]) -> Examples:
    """Draw examples of the questions' tasks from a table with the columns task, prompt and answer."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for row in read_table(url, ["task", "prompt", "answer"]):
        found[row["task"]].append((row["prompt"], row["answer"]))
    tasks = {question.group for question in questions}
    return {task: random.Random(task).sample(found[task], min(_SHOTS, len(found[task]))) for task in sorted(tasks)}


def few_shot(prompts: PromptFormat, examples: Examples, max_prompt_tokens: int) -> Configuration:
    """Ask the base model with examples of the question's task before it, as many as fit.

    In chat format each example is a turn of the conversation.
    """

    def tokens(question: Question) -> list[int]:
        shots = list(examples[question.group])
        while shots:
            [encoded] = prompts.encode([_conversation(prompts, shots, question.prompt)])
            if len(encoded) <= max_prompt_tokens:
                return encoded
            shots.pop()
        return prompts.encode([question.prompt])[0]

    def asked(questions: Sequence[TokenizedQuestion]) -> list[Asked]:
        return [Asked((Request(one.question.id, tokens(one.question), Mixture()),)) for one in questions]

    digest = hashlib.sha256(repr([examples, max_prompt_tokens]).encode()).hexdigest()[:16]
    return Configuration("few-shot base", asked, variant=f"few-shot {digest}")


def _conversation(prompts: PromptFormat, shots: Sequence[tuple[str, str]], prompt: str) -> Prompt:
    if prompts.settings.prompt_format == "raw":
        return "".join(f"{asked}\n{answer}\n\n" for asked, answer in shots) + prompt
    turns = [(role, text) for shot in shots for role, text in zip(("user", "assistant"), shot, strict=True)]
    return Conversation([{"role": role, "content": text} for role, text in [*turns, ("user", prompt)]])
