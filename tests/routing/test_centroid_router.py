"""A router from examples alone, on the synthetic task of this folder with random token embeddings."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from pipeline.routing import RoutingPolicy
from pipeline.routing.centroid_router import CentroidRouter, CentroidSettings, fit_centroids
from pipeline.routing.extension import add_class
from pipeline.routing.loading import load_router
from tests.routing import CARD, LABELS, VOCABULARY, encode, make_prompts, written
from tests.routing.test_extension import strangers
from tests.storage import user_error

SETTINGS = CentroidSettings(examples=32, forms=0, dimensions=16, seed=0)
TOP = RoutingPolicy(gate=False, max_adapters=1)


def make_router(count: int = 300) -> CentroidRouter:
    prompts, labels = make_prompts(count, seed=1)
    embeddings = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(0))
    return fit_centroids(written(prompts), labels, encode, embeddings, SETTINGS, dict(CARD))


@pytest.fixture(scope="module")
def router() -> CentroidRouter:
    return make_router()


def share_right(router: CentroidRouter, prompts: list[list[int]], labels: list[str]) -> float:
    routes = router.route(prompts, TOP)
    return sum(r.mixture.adapters == (label,) for label, r in zip(labels, routes, strict=True)) / len(labels)


def test_examples_are_enough(router: CentroidRouter) -> None:
    assert share_right(router, *make_prompts(300, seed=2)) > 0.95
    assert router.card["metrics"]["train_prompts"] == 96
    assert router.card["metrics"]["held_out_accuracy"] > 0.9
    assert router.labels == list(LABELS)


def test_metrics_are_those_of_prompts_that_the_centroids_do_not_know() -> None:
    """With random labels nothing can be known of a prompt: an example measured by its own centroid would look known."""
    prompts, labels = make_prompts(300, seed=1)
    embeddings = torch.randn(VOCABULARY, 32, generator=torch.Generator().manual_seed(0))
    shuffled = fit_centroids(written(prompts), labels[::-1], encode, embeddings, SETTINGS, dict(CARD))
    assert shuffled.card["metrics"]["held_out_accuracy"] < 0.5


def test_a_saved_router_routes_as_it_did_before(router: CentroidRouter, tmp_path: Path) -> None:
    prompts, _ = make_prompts(100, seed=3)
    router.save(tmp_path)
    loaded = load_router(tmp_path)
    assert loaded.kind == "centroids"
    assert loaded.route(prompts, RoutingPolicy()) == router.route(prompts, RoutingPolicy())
    assert loaded.route(prompts[:1], RoutingPolicy()) == router.route(prompts, RoutingPolicy())[:1]


def test_the_gate_accepts_the_task_but_not_tokens_it_never_saw(router: CentroidRouter) -> None:
    prompts, _ = make_prompts(300, seed=2)
    accepted = [not route.fallback for route in router.route(prompts, RoutingPolicy())]
    strange = [not route.fallback for route in router.route(strangers(100, 9), RoutingPolicy(acceptance=0.9))]
    assert sum(accepted) / len(accepted) > 0.9
    assert sum(strange) / len(strange) < 0.5


def test_a_class_is_added(router: CentroidRouter, tmp_path: Path) -> None:
    new, found = add_class(router, "news", strangers(12, 1), false_claim=0.005)
    new.save(tmp_path)
    loaded = load_router(tmp_path)
    routes = loaded.route(strangers(100, 2), RoutingPolicy())
    assert sum(route.mixture.adapters == ("news",) for route in routes) > 85
    assert share_right(new, *make_prompts(300, seed=3)) > 0.95
    assert (found.recall > 0.8, found.taken <= 0.01) == (True, True)


def test_too_few_examples_are_refused() -> None:
    prompts, labels = make_prompts(300, seed=1)
    kept = [i for i, label in enumerate(labels) if label != "med"] + [i for i, x in enumerate(labels) if x == "med"][:7]
    texts = written([prompts[i] for i in kept])
    with user_error("7 prompt(s)", "'med'", "at least 8"):
        fit_centroids(texts, [labels[i] for i in kept], encode, torch.randn(VOCABULARY, 8), SETTINGS, dict(CARD))


def test_damaged_files_are_refused(router: CentroidRouter, tmp_path: Path) -> None:
    router.save(tmp_path)
    card, weights = (tmp_path / "router.json").read_text(), (tmp_path / "router.safetensors").read_bytes()
    for name, change in {"shape": {"embedding": 8}, "kind": "mlp", "labels": ["a", "b"]}.items():
        changed = json.loads(card) | {name: json.loads(card)[name] | change if isinstance(change, dict) else change}
        (tmp_path / "router.json").write_text(json.dumps(changed))
        with user_error("router", str(tmp_path)):
            load_router(tmp_path)
    (tmp_path / "router.json").write_text(card)
    tensors = dict(load(weights))
    tensors["model.centroids"] = tensors["model.centroids"] + 1
    save_file(tensors, tmp_path / "router.safetensors")
    with user_error("do not belong together", str(tmp_path)):
        load_router(tmp_path)
