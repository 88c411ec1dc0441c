from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.models import PromptFormat, load_tokenizer
from pipeline.routing import RoutingPolicy
from pipeline.routing.mlp_router import MlpRouter
from pipeline.routing.network import RouterNetwork, RouterShape
from pipeline.routing.training import train_router
from tests import tiny
from tests.routing import CARD, LABELS, SETTINGS, VOCABULARY, encode, make_prompts, make_router, written


@pytest.fixture(scope="module")
def router() -> MlpRouter:
    return make_router()


def saved(router: MlpRouter, folder: Path) -> str:
    router.save(folder)
    return router.fingerprint


def test_a_separable_task_is_learned(router: MlpRouter) -> None:
    prompts, labels = make_prompts(300, seed=2)
    routes = router.route(prompts, RoutingPolicy(gate=False))
    right = [label in route.mixture.adapters for label, route in zip(labels, routes, strict=True)]
    assert sum(right) / len(right) > 0.95
    assert router.card["metrics"]["held_out_accuracy"] > 0.95


def test_the_gate_accepts_the_task_but_not_tokens_it_never_saw(router: MlpRouter) -> None:
    prompts, _ = make_prompts(300, seed=2)
    accepted = [not route.fallback for route in router.route(prompts, RoutingPolicy())]
    assert sum(accepted) / len(accepted) > 0.9
    strange = [[token] * 12 for token in range(40, VOCABULARY)]
    routes = router.route(strange, RoutingPolicy())
    assert sum(route.fallback for route in routes) > len(routes) / 2


def test_the_card_says_what_was_trained(router: MlpRouter) -> None:
    card = router.card
    assert (card["labels"], card["prompt_format"]) == (list(LABELS), "chat")
    assert (card["metrics"]["train_prompts"], card["metrics"]["held_out_prompts"]) == (360, 40)
    assert card["settings"]["epochs"] == 20
    assert card["metrics"]["parameters"] == sum(p.numel() for p in router.model.parameters())


@pytest.mark.parametrize("share", [0.9, 0.98])
def test_the_gate_accepts_the_stated_share_of_prompts_like_the_held_out_ones(share: float) -> None:
    router = make_router(held_out=0.5, epochs=2)
    assert router.card["metrics"]["held_out_prompts"] == 200
    prompts, _ = make_prompts(2000, seed=7)
    accepted = [not route.fallback for route in router.route(prompts, RoutingPolicy(acceptance=share))]
    assert sum(accepted) / len(accepted) == pytest.approx(share, abs=0.04)


def test_training_depends_on_the_seed_alone(tmp_path: Path) -> None:
    prints = [saved(make_router(seed, epochs=1), tmp_path / str(n)) for n, seed in enumerate((3, 3, 4))]
    assert prints[0] == prints[1] != prints[2]


def test_training_does_not_depend_on_random_numbers_drawn_before(tmp_path: Path) -> None:
    first = saved(make_router(epochs=1), tmp_path / "a")
    torch.rand(10)
    assert saved(make_router(epochs=1), tmp_path / "b") == first


def test_progress_is_told_after_each_epoch() -> None:
    lines: list[str] = []
    prompts, labels = make_prompts(60)
    train_router(written(prompts), labels, encode, VOCABULARY, replace(SETTINGS, epochs=3), dict(CARD), lines.append)
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]


@pytest.mark.long
def test_forms_of_prompts_are_learned(tmp_path: Path) -> None:
    """Upper-case letters are other tokens: a router that never saw them cannot know the task."""
    tiny.make_tokenizer(tmp_path)
    encode = PromptFormat(load_tokenizer(str(tmp_path))).encode
    names = ["red", "tall", "cold"]
    texts = [text for name in names for text in tiny.prompts_of(name, 60)]
    labels = [name for name in names for _ in range(60)]
    upper = encode([text.upper() for name in names for text in tiny.prompts_of(name, 40, seed=1)])
    found = []
    for forms in (0, 1):
        settings = replace(SETTINGS, epochs=20, batch_size=16, learning_rate=1e-2, forms=forms)
        router = train_router(texts, labels, encode, 600, settings, dict(CARD), lambda line: None)
        routes = router.route(upper, RoutingPolicy(gate=False, max_adapters=1))
        found.append(sum(r.mixture.adapters == (names[i // 40],) for i, r in enumerate(routes)) / len(upper))
        assert router.card["metrics"]["held_out_accuracy"] > 0.8
    assert found[0] < 0.7 < 0.9 < found[1]


def test_the_network_has_the_size_of_the_paper() -> None:
    model = RouterNetwork(RouterShape(49_152, 26))
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linear) == 4
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(5e6, rel=0.1)
