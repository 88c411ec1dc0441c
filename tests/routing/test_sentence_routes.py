"""Routes of prompts sentence by sentence."""

from collections.abc import Sequence

import pytest

from pipeline.records import Mixture
from pipeline.routing import RoutingPolicy
from pipeline.routing.router import Route
from pipeline.routing.sentence_routes import route_sentences
from pipeline.routing.sentences import Sentence
from tests.routing import LABELS, make_router

POLICY = RoutingPolicy(gate=False)


class ShownRouter:
    """Notes what it is shown; its route is the adapter ``t<last token>``, or ``outside`` for negative tokens."""

    def __init__(self, outside: Mixture | None = None) -> None:
        self.shown: list[list[int]] = []
        self.outside = outside or Mixture()

    def route(self, prompts: Sequence[Sequence[int]], policy: RoutingPolicy) -> list[Route]:
        self.shown += [list(p) for p in prompts]
        return [
            Route(
                self.outside if p[-1] < 0 else Mixture.of({f"t{p[-1]}": 1.0}), float(p[-1]), abs(p[-1]) / 10, p[-1] < 0
            )
            for p in prompts
        ]


def sentences(*places: tuple[int, int]) -> tuple[Sentence, ...]:
    return tuple(Sentence(start, paragraph) for start, paragraph in places)


def adapter(name: str) -> Mixture:
    return Mixture.of({name: 1.0})


def test_the_router_sees_a_sentence_and_some_before_it_of_its_paragraph() -> None:
    router = ShownRouter()
    divided = sentences((0, 0), (2, 0), (3, 0), (5, 5), (6, 5))
    route_sentences(router, POLICY, [range(8), [9]], [divided, sentences((0, 0))], 1)  # type: ignore[arg-type]
    assert router.shown == [[0, 1], [0, 1, 2], [2, 3, 4], [5], [5, 6, 7], [9]]
    router.shown.clear()
    route_sentences(router, POLICY, [range(8)], [divided], 0)  # type: ignore[arg-type]
    assert router.shown == [[0, 1], [2], [3, 4], [5], [6, 7]]
    router.shown.clear()
    route_sentences(router, POLICY, [range(8)], [divided], 9)  # type: ignore[arg-type]
    assert router.shown == [[0, 1], [0, 1, 2], [0, 1, 2, 3, 4], [5], [5, 6, 7]]


def test_a_sentence_below_the_gate_goes_on_with_the_mixture_before_it() -> None:
    divided = sentences((0, 0), (1, 0), (2, 2), (3, 2))
    prompts = [[-1, 5, -2, 6], [7, -9, -2, -3], [-1, -2, -3, -4]]
    some, first, none = route_sentences(ShownRouter(), POLICY, prompts, [divided] * 3, 0)  # type: ignore[arg-type]
    assert [m for _, m in some.spans] == [Mixture(), adapter("t5"), adapter("t5"), adapter("t6")]
    assert [m for _, m in first.spans] == [adapter("t7")] * 4
    assert (first.mixture, first.score, first.fallback) == (adapter("t7"), 7.0, False)
    assert (none.mixture, none.score, none.fallback) == (Mixture(), -1.0, True)
    assert (some.confidence, first.confidence) == (0.6, 0.3)
    assert (some.mixture, some.context, [start for start, _ in some.spans]) == (adapter("t6"), 2, [0, 1, 2, 3])


def test_sentences_below_the_gate_before_any_other_have_the_fallback() -> None:
    divided, blend = sentences((0, 0), (1, 0), (2, 2)), Mixture.of({"a": 0.5, "b": 0.5})
    some, none = route_sentences(ShownRouter(blend), POLICY, [[-1, 5, -2], [-1, -2, -3]], [divided] * 2, 0)  # type: ignore[arg-type]
    assert [m for _, m in some.spans] == [blend, adapter("t5"), adapter("t5")]
    assert [m for _, m in none.spans] == [blend] * 3


@pytest.mark.long
def test_sentences_of_different_tasks_get_different_adapters() -> None:
    router = make_router()
    art, legal = [[10 * label + 10 + i % 10 for i in range(12)] for label in (0, 1)]
    (route,) = route_sentences(router, POLICY, [art + legal], [sentences((0, 0), (12, 12))], 1)
    assert route.spans == ((0, adapter(LABELS[0])), (12, adapter(LABELS[1])))


def test_no_prompts_are_no_routes() -> None:
    assert route_sentences(make_router(epochs=1), POLICY, [], [], 1) == []
