"""The compared ways to choose the mixture of each question."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.engine import Request
from pipeline.errors import UserError
from pipeline.models import PromptFormat
from pipeline.records import Mixture
from pipeline.routing import PartSettings, RoutingPolicy, SentenceSettings
from pipeline.routing.part_routes import PartCutter
from pipeline.routing.parts import join_answers
from pipeline.routing.policy import blend
from pipeline.routing.rerouting import SentenceRouter
from pipeline.routing.router import Router
from pipeline.routing.sentence_routes import route_sentences
from pipeline.routing.sentences import prompt_sentences

from .suite import Question

_ROUTE_ROWS = 1024  # prompts in one forward pass of the router


@dataclass(frozen=True)
class TokenizedQuestion:
    """A question and the token ids of its prompt."""

    question: Question
    tokens: list[int]


Choose = Callable[[Router, Sequence[Sequence[int]]], Sequence[Mixture]]
"""From a router and prompts (token ids) to mixtures, in the same order."""


@dataclass(frozen=True)
class Asked:
    """The requests that answer one question: one, or one for each part of its prompt, with the parts' ``marks``."""

    requests: tuple[Request, ...]
    marks: tuple[str, ...] = ("",)

    @property
    def mixture(self) -> Mixture:
        """Mean of the mixtures of all requests."""
        return Mixture.mean([request.mixture for request in self.requests])

    def join(self, outputs: Sequence[str]) -> str:
        """Join the answers to all requests."""
        return outputs[0] if len(outputs) == 1 else join_answers(self.marks, outputs)


@dataclass(frozen=True)
class Configuration:
    """A named function from questions to what is asked for them, in the same order.

    Configurations share answers by request id and mixture; an id is that of the question, or holds that of a part. If
    answers depend on more (a mixture that changes along the text), ``variant`` holds all of it. ``generate``: further
    arguments of `Engine.generate` for the requests.
    """

    name: str
    asked: Callable[[Sequence[TokenizedQuestion]], list[Asked]]
    variant: str = ""
    generate: Mapping[str, Any] = field(default_factory=dict)

    def key(self, request: Request) -> str:
        """Return everything that decides the answer to a request, besides the record."""
        return f"{self.variant} {request.mixture.key}" if self.variant else request.mixture.key


def configurations(
    composite: bool, adapters: Sequence[str], router: Router, policy: RoutingPolicy
) -> list[Configuration]:
    """List the base model, the tasks' own adapters, routed mixtures, and simpler ways to mix.

    ``policy``: the limits and steps of all routed mixtures; the gate is only on in the configuration named after it.
    """
    ungated = replace(policy, gate=False)

    def routed(name: str, top_p: float, **changes: Any) -> Configuration:
        policy = replace(ungated, top_p=top_p, **changes)
        return by_router(name, router, lambda router, prompts: [r.mixture for r in router.route(prompts, policy)])

    equal = blend(adapters)
    return [
        by_question("base", lambda question: Mixture()),
        by_question("oracle-blend" if composite else "oracle", own_adapters),
        routed("routed p=0.6", 0.6),
        routed("routed p=0.6 + gate", 0.6, gate=True),
        routed("routed p=0.9", 0.9),
        routed("top-1", 0.6, max_adapters=1),
        by_question("equal", lambda question: equal),
        routed("softmax p=0.6", 0.6, weights="softmax"),
        routed("softmax p=0.9", 0.9, weights="softmax"),
    ]


def own_adapters(question: Question) -> Mixture:
    """Mix the adapters of the question's own tasks with equal weights."""
    return blend(sorted(set(question.tasks)))


def check_adapters(questions: Sequence[Question], adapters: Sequence[str], bank: str) -> None:
    """Raise `UserError` if the bank has no adapter for a task of the questions."""
    missing = sorted({task for question in questions for task in question.tasks} - set(adapters))
    if missing:
        raise UserError(
            f"evaluate: the bank {bank} has no adapter for the task(s) {', '.join(missing)}; choose tasks with --task"
        )


def by_question(name: str, mixture: Callable[[Question], Mixture]) -> Configuration:
    """Choose the mixture of each question without a router."""

    def asked(questions: Sequence[TokenizedQuestion]) -> list[Asked]:
        return [Asked((Request(one.question.id, one.tokens, mixture(one.question)),)) for one in questions]

    return Configuration(name, asked)


def by_router(name: str, router: Router, choose: Choose, leave_out: bool = False) -> Configuration:
    """Choose mixtures with a router; ``leave_out``: with one that does not know the question's own tasks."""

    def asked(questions: Sequence[TokenizedQuestion]) -> list[Asked]:
        groups: dict[tuple[str, ...], list[TokenizedQuestion]] = defaultdict(list)
        for one in questions:
            groups[one.question.tasks if leave_out else ()].append(one)
        mixtures: dict[str, Mixture] = {}
        for tasks, group in groups.items():
            known = router.without(tasks) if tasks else router
            for start in range(0, len(group), _ROUTE_ROWS):
                part = group[start : start + _ROUTE_ROWS]
                chosen = choose(known, [one.tokens for one in part])
                mixtures |= {one.question.id: mixture for one, mixture in zip(part, chosen, strict=True)}
        return [Asked((Request(one.question.id, one.tokens, mixtures[one.question.id]),)) for one in questions]

    return Configuration(name, asked)


def _mixtures(router: Router, policy: RoutingPolicy, prompts: Sequence[list[int]]) -> list[Mixture]:
    blocks = [prompts[start : start + _ROUTE_ROWS] for start in range(0, len(prompts), _ROUTE_ROWS)]
    return [route.mixture for block in blocks for route in router.route(block, policy)]


def part_configurations(
    prompts: PromptFormat, router: Router, policy: RoutingPolicy, settings: PartSettings
) -> list[Configuration]:
    """Ask each part of a prompt as a prompt of its own, and join the answers, with and without the marks of items.

    References of composites are numbered, so that marks are right by themselves in some metrics.
    """
    policy = replace(policy, gate=True)

    def asked(questions: Sequence[TokenizedQuestion]) -> list[Asked]:
        cut = PartCutter(prompts, router, policy, settings).cut([one.question.prompt for one in questions])
        tokens = prompts.encode([part.prompt for parts in cut for part in parts])
        routed = iter(zip(tokens, _mixtures(router, policy, tokens), strict=True))
        return [
            Asked(
                tuple(Request(_part_id(one, ids), ids, mixture) for ids, mixture in (next(routed) for _ in parts)),
                tuple(part.mark for part in parts),
            )
            for one, parts in zip(questions, cut, strict=True)
        ]

    def without_marks(questions: Sequence[TokenizedQuestion]) -> list[Asked]:
        return [Asked(one.requests, ("",) * len(one.marks)) for one in asked(questions)]

    return [Configuration("parts", asked), Configuration("parts without marks", without_marks)]


def _part_id(question: TokenizedQuestion, tokens: list[int]) -> str:
    """Return the question's id if the prompt is its own, else with a hash of the part's prompt."""
    if tokens == question.tokens:
        return question.question.id
    return f"{question.question.id} part {hashlib.sha256(repr(tokens).encode()).hexdigest()[:16]}"


def sentence_configuration(
    prompts: PromptFormat, router: Router, policy: RoutingPolicy, settings: SentenceSettings
) -> Configuration:
    """Route every sentence of prompt and answer for itself; out-of-domain sentences keep the mixture before them."""
    policy = replace(policy, gate=True)

    def asked(questions: Sequence[TokenizedQuestion]) -> list[Asked]:
        head, tail = map(len, prompts.template_tokens(""))
        encoded = prompts.encode_with_offsets([one.question.prompt for one in questions])
        sentences = [prompt_sentences(one.text, one.ends, head, tail, settings) for one in encoded]
        tokens = [one.tokens for one in encoded]
        routes = route_sentences(router, policy, tokens, sentences, settings.context_sentences)
        return [
            Asked((Request(one.question.id, ids, route.mixture, route.spans, route.context),))
            for one, ids, route in zip(questions, tokens, routes, strict=True)
        ]

    return Configuration(
        name=f"sentence p={policy.top_p:g}",
        asked=asked,
        variant=f"{settings} {policy} {router.fingerprint}",
        generate={"reroute": SentenceRouter(router, policy, settings, prompts.tokenizer)},
    )
