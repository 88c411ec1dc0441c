"""What is compared: ways to choose the mixture of each question."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.engine import Request
from pipeline.errors import UserError
from pipeline.records import Mixture
from pipeline.routing import Router, RoutingPolicy

from .suite import Question

_ROUTE_ROWS = 1024  # prompts of one forward pass of the router


@dataclass(frozen=True)
class Asked:
    """A question and its prompt's token ids."""

    question: Question
    tokens: list[int]


@dataclass(frozen=True)
class Configuration:
    """A named way from questions to requests, in the same order.

    Answers are shared among configurations by record and mixture. A configuration whose answers depend on more (a
    mixture that changes along the text) says so by a ``variant`` that holds all of it; ``generate`` are further
    arguments of `Engine.generate` for its requests.
    """

    name: str
    requests: Callable[[Sequence[Asked]], list[Request]]
    variant: str = ""
    generate: Mapping[str, Any] = field(default_factory=dict)

    def key(self, request: Request) -> str:
        """What decides the answer to this request, besides the record."""
        return f"{self.variant} {request.mixture.key}" if self.variant else request.mixture.key


def configurations(
    composite: bool, adapters: Sequence[str], router: Router, policy: RoutingPolicy
) -> list[Configuration]:
    """The base model, the tasks' own adapters, routed mixtures, and simpler ways to mix.

    ``policy``: the limits and steps of all routed mixtures; the gate is off but for the one named so.
    """
    ungated = replace(policy, gate=False)

    def routed(name: str, top_p: float, **changes: Any) -> Configuration:
        return _routed(name, router, replace(ungated, top_p=top_p, **changes))

    equal = Mixture.of({name: 1 / len(adapters) for name in adapters})
    return [
        _fixed("base", lambda question: Mixture()),
        _fixed("oracle-blend" if composite else "oracle", own_adapters),
        routed("routed p=0.6", 0.6),
        routed("routed p=0.6 + gate", 0.6, gate=True),
        routed("routed p=0.9", 0.9),
        routed("top-1", 0.6, max_adapters=1),
        _fixed("equal", lambda question: equal),
        routed("softmax p=0.6", 0.6, weights="softmax"),
        routed("softmax p=0.9", 0.9, weights="softmax"),
    ]


def own_adapters(question: Question) -> Mixture:
    """The adapters of the question's own tasks, at equal weight."""
    tasks = sorted(set(question.tasks))
    return Mixture.of({task: 1 / len(tasks) for task in tasks})


def check_adapters(questions: Sequence[Question], adapters: Sequence[str], bank: str) -> None:
    """`UserError` where the bank has no adapter for a task of the questions."""
    missing = sorted({task for question in questions for task in question.tasks} - set(adapters))
    if missing:
        raise UserError(
            f"evaluate: the bank {bank} has no adapter for the task(s) {', '.join(missing)}; choose tasks with --tasks"
        )


def _fixed(name: str, mixture: Callable[[Question], Mixture]) -> Configuration:
    def requests(asked: Sequence[Asked]) -> list[Request]:
        return [Request(one.question.id, one.tokens, mixture(one.question)) for one in asked]

    return Configuration(name, requests)


def _routed(name: str, router: Router, policy: RoutingPolicy) -> Configuration:
    def requests(asked: Sequence[Asked]) -> list[Request]:
        prompts = [one.tokens for one in asked]
        parts = [prompts[start : start + _ROUTE_ROWS] for start in range(0, len(prompts), _ROUTE_ROWS)]
        routes = [route for part in parts for route in router.route(part, policy)]
        return [Request(one.question.id, one.tokens, route.mixture) for one, route in zip(asked, routes, strict=True)]

    return Configuration(name, requests)
