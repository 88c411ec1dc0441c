"""A class added to a trained router from examples, on the synthetic task of this folder."""

import random
from pathlib import Path

import pytest

from pipeline.routing import RoutingPolicy
from pipeline.routing.extension import add_class
from pipeline.routing.loading import load_router
from pipeline.routing.mlp_router import MlpRouter
from tests.routing import make_prompts, make_router
from tests.storage import user_error


@pytest.fixture(scope="module")
def router() -> MlpRouter:
    return make_router()


def strangers(count: int, seed: int) -> list[list[int]]:
    """Prompts of a class with tokens of its own, 40 to 49, among the common ones."""
    rng = random.Random(seed)
    return [
        [*(rng.randrange(40, 50) for _ in range(rng.randint(6, 20))), *(rng.randrange(10) for _ in range(3))]
        for _ in range(count)
    ]


@pytest.mark.long
def test_an_added_class_is_found_and_the_others_stay(router: MlpRouter) -> None:
    new, found = add_class(router, "news", strangers(12, 1), false_claim=0.005)
    policy = RoutingPolicy()
    routes = new.route(strangers(200, 2), policy)
    assert sum(route.mixture.adapters == ("news",) for route in routes) / 200 > 0.85
    prompts, labels = make_prompts(300, seed=3)
    before, after = (r.route(prompts, RoutingPolicy(gate=False)) for r in (router, new))
    right = [sum(label in r.mixture.adapters for label, r in zip(labels, rs, strict=True)) for rs in (before, after)]
    assert right[1] >= right[0] - 6
    assert found.recall > 0.8
    assert found.taken <= 0.01
    assert found.accuracy_after >= found.accuracy_before - 0.01


def test_the_measures_of_a_class_without_a_face_are_low(router: MlpRouter) -> None:
    """Examples that are spread over all the classes cannot be told from them, and take next to nothing."""
    prompts, _ = make_prompts(16, seed=11)
    _, found = add_class(router, "all", prompts, false_claim=0.0)
    assert found.recall < 0.5
    assert found.taken <= 0.05  # two of forty held-out prompts that its margin was not fitted on


def test_two_classes_are_added_one_after_the_other(router: MlpRouter, tmp_path: Path) -> None:
    others = [[token + 10 for token in prompt] for prompt in strangers(12, 4)]
    first, _ = add_class(router, "news", strangers(12, 1), 0.005)
    second, _ = add_class(first, "sport", others, 0.005)
    second.save(tmp_path)
    loaded = load_router(tmp_path)
    assert loaded.labels == [*router.labels, "news", "sport"]
    assert [entry["label"] for entry in loaded.card["added"]] == ["news", "sport"]
    routes = loaded.route(strangers(100, 5), RoutingPolicy(gate=False))
    assert sum("news" in route.mixture.adapters for route in routes) > 80
    assert router.labels == first.labels[:-1]
    assert len(loaded.head.trained) + len(loaded.head.added) == 5


def test_the_new_router_has_a_fingerprint_of_its_own(router: MlpRouter, tmp_path: Path) -> None:
    router.save(tmp_path / "old")
    new, _ = add_class(router, "news", strangers(12, 1), 0.005)
    new.save(tmp_path / "new")
    assert load_router(tmp_path / "new").fingerprint != load_router(tmp_path / "old").fingerprint


def test_too_few_examples_and_known_names_are_refused(router: MlpRouter) -> None:
    with user_error("7 example prompt(s)", "'news'", "at least 8"):
        add_class(router, "news", strangers(7, 1), 0.005)
    with user_error("'art' already"):
        add_class(router, "art", strangers(8, 1), 0.005)
