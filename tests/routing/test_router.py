import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save_file

from pipeline.routing import RoutingPolicy
from pipeline.routing.calibration import gate_score
from pipeline.routing.extension import add_class
from pipeline.routing.loading import load_router
from pipeline.routing.mlp_router import MlpRouter
from pipeline.routing.policy import Fallback
from pipeline.routing.router import unnamed_line
from tests.routing import LABELS, make_prompts, make_router
from tests.storage import user_error

PROMPTS = make_prompts(120, seed=5)[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router")
    make_router(epochs=2).save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A saved router that may be broken."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture(scope="module")
def router(saved: Path) -> MlpRouter:
    loaded = load_router(saved)
    assert isinstance(loaded, MlpRouter)
    return loaded


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "router.json").read_text())
    change(card)
    (folder / "router.json").write_text(json.dumps(card))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """The saved tensors, not mapped to the file: it may be overwritten."""
    return dict(load((folder / "router.safetensors").read_bytes()))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    save_file(tensors, folder / "router.safetensors")


def with_threshold(router: MlpRouter, threshold: float) -> MlpRouter:
    card = router.card | {"gate_thresholds": {"0.99": threshold}}
    return MlpRouter(router.model, router.held_out, router.head, card)


def test_a_saved_router_routes_as_it_did_before(tmp_path: Path) -> None:
    router = make_router(epochs=1)
    before = router.route(PROMPTS, RoutingPolicy())
    router.save(tmp_path / "new" / "router")
    loaded = load_router(str(tmp_path / "new" / "router"))
    assert loaded.route(PROMPTS, RoutingPolicy()) == before
    assert (loaded.labels, loaded.fingerprint) == (list(LABELS), router.fingerprint)
    assert loaded.threshold(0.95) == router.threshold(0.95)


def test_a_route_does_not_depend_on_the_rest_of_the_batch(router: MlpRouter) -> None:
    policy = RoutingPolicy(top_p=0.9)
    together = router.route(PROMPTS, policy)
    alone = [router.route([prompt], policy)[0] for prompt in PROMPTS]
    backwards = router.route(PROMPTS[::-1], policy)[::-1]
    for routes in (alone, backwards):
        assert [(r.mixture, r.fallback) for r in routes] == [(r.mixture, r.fallback) for r in together]
        assert [r.score for r in routes] == [r.score for r in together]


@pytest.mark.parametrize("fallback", ["base", "all", "nearest"])
def test_a_prompt_below_the_threshold_gets_the_fallback(router: MlpRouter, fallback: Fallback) -> None:
    policy = RoutingPolicy(fallback=fallback, max_adapters=2)
    scores = sorted(route.score for route in router.route(PROMPTS, policy))
    strict = with_threshold(router, scores[60])
    routes = strict.route(PROMPTS, policy)
    assert [r.fallback for r in routes] == [r.score < scores[60] for r in routes]
    likeliest = strict.probabilities(strict.embed(PROMPTS)).topk(2).indices.tolist()
    expected = {
        "base": [()] * len(routes),
        "all": [LABELS] * len(routes),
        "nearest": [tuple(sorted(LABELS[c] for c in pair)) for pair in likeliest],
    }[fallback]
    rejected = [(r.mixture.adapters, adapters) for r, adapters in zip(routes, expected, strict=True) if r.fallback]
    assert len(rejected) == 60
    assert all(found == adapters for found, adapters in rejected)
    routed = router.route(PROMPTS, RoutingPolicy(gate=False, max_adapters=2))
    assert [r for r in routes if not r.fallback] == [r for r in routed if r.score >= scores[60]]


def test_a_router_has_a_fallback_that_a_policy_may_replace(router: MlpRouter, tmp_path: Path) -> None:
    strict = with_threshold(router, 2.0)  # above every cosine
    strict.card["fallback"] = "all"
    strict.save(tmp_path)
    loaded = MlpRouter.load(tmp_path, json.loads((tmp_path / "router.json").read_text()))
    assert loaded.fingerprint != router.fingerprint
    found = [loaded.route(PROMPTS[:1], RoutingPolicy(fallback=own))[0].mixture for own in (None, "base", "all")]
    assert [mixture.adapters for mixture in found] == [LABELS, (), LABELS]
    assert router.fallback == "base"


@pytest.mark.parametrize("left_out", LABELS)
def test_a_router_without_a_class_gives_its_probability_to_the_others(router: MlpRouter, left_out: str) -> None:
    other = router.without([left_out])
    index = LABELS.index(left_out)
    kept = [c for c in range(len(LABELS)) if c != index]
    assert other.labels == [LABELS[c] for c in kept]
    whole, found = (r.classify(PROMPTS, 0.99) for r in (router, other))
    expected = whole.probabilities[:, kept] / whole.probabilities[:, kept].sum(1, keepdim=True)
    assert torch.allclose(found.probabilities, expected, atol=1e-9)
    others = router.head.trained[kept].double()
    assert torch.allclose(found.scores, gate_score(router.embed(PROMPTS), others), atol=1e-9)
    assert found.scores.mean() < whole.scores.mean() - 0.05
    assert router.labels == list(LABELS), "the router itself has not changed"
    rest = [label for label in LABELS if label != left_out]
    assert other.without(rest[:1]).labels == router.without([left_out, rest[0]]).labels == rest[1:]
    both = [r.probabilities(r.embed(PROMPTS)) for r in (other.without(rest[:1]), router.without([left_out, rest[0]]))]
    assert torch.equal(*both)


def test_a_router_can_do_without_a_class_that_was_added(router: MlpRouter) -> None:
    prompts = [[50 + i % 7, 51, 52, 53 + i % 3] for i in range(12)]
    extended, _ = add_class(router, "new", prompts, 0.05)
    same = extended.without(["new"])
    assert same.labels == router.labels
    before, after = (r.classify([*PROMPTS, *prompts], 0.99) for r in (router, same))
    assert torch.allclose(after.probabilities, before.probabilities, atol=1e-9)
    assert torch.allclose(after.scores, before.scores, atol=1e-9)
    one = extended.without(["legal"])
    assert one.labels == ["art", "med", "new"]
    assert one.classify(prompts, 0.99).probabilities.argmax(1).tolist() == [2] * len(prompts)


def test_without_the_gate_nothing_falls_back(router: MlpRouter) -> None:
    strict = with_threshold(router, 2.0)
    assert not any(route.fallback for route in strict.route(PROMPTS, RoutingPolicy(gate=False)))
    assert all(route.fallback for route in strict.route(PROMPTS, RoutingPolicy()))


def test_an_acceptance_without_a_threshold_is_refused(router: MlpRouter) -> None:
    with user_error("routing.acceptance=0.42", "0.99"):
        router.route(PROMPTS, RoutingPolicy(acceptance=0.42))


def test_no_prompts_are_no_routes(router: MlpRouter) -> None:
    assert router.route([], RoutingPolicy()) == []


def test_mixtures_name_labels_only(router: MlpRouter) -> None:
    names = {name for route in router.route(PROMPTS, RoutingPolicy(top_p=1.0)) for name in route.mixture.adapters}
    assert names <= set(LABELS)


def test_a_bank_with_all_labels_will_do(router: MlpRouter) -> None:
    router.check_bank([*LABELS, "more"], "demo/bank")


def test_a_bank_without_some_labels_is_refused(router: MlpRouter) -> None:
    with user_error("demo/bank", "art, med"):
        router.check_bank(["legal"], "demo/bank")
    with user_error("lacks: art, med and it has checkpoint-500, which no class names; use the router"):
        router.check_bank(["legal", "checkpoint-500"], "demo/bank")


def test_adapters_that_no_class_names_are_found(router: MlpRouter) -> None:
    assert router.unnamed(LABELS) == []
    assert router.unnamed(["more", *LABELS, "extra"]) == ["extra", "more"]
    assert "12 adapter(s) of the bank" in unnamed_line([f"a{n}" for n in range(12)])
    assert unnamed_line([f"a{n}" for n in range(12)]).count("a1") == 1  # ten of them are named


def test_prompts_of_another_tokenizer_or_format_are_refused(router: MlpRouter) -> None:
    router.check_prompts("tok1", "chat")
    with user_error("tokenizer_fingerprint=tok1", "tok2"):
        router.check_prompts("tok2", "chat")
    with user_error("prompt_format=chat", "raw"):
        router.check_prompts("tok1", "raw")


@pytest.mark.parametrize("name", ["router.json", "router.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"{}", b"[]", b"not it\n\n", b"\xff" * 100])
def test_a_missing_or_broken_file_is_refused(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with user_error("router", str(folder)):
        load_router(folder)


def test_a_pickle_in_place_of_the_weights_is_refused(folder: Path) -> None:
    torch.save(tensors_of(folder), folder / "router.safetensors")
    with user_error("router", str(folder)):
        load_router(folder)


def test_a_file_cut_short_is_refused(folder: Path) -> None:
    path = folder / "router.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with user_error("router", str(folder)):
        load_router(folder)


CARD_CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "labels swapped": lambda card: card["labels"].reverse(),
    "threshold": lambda card: card["gate_thresholds"].update({"0.99": -1.0}),
    "no thresholds": lambda card: card.pop("gate_thresholds"),
    "temperature": lambda card: card.update(temperature=1.5),
    "fingerprint": lambda card: card.update(fingerprint="0" * 16),
    "no fingerprint": lambda card: card.pop("fingerprint"),
    "no labels": lambda card: card.pop("labels"),
    "shape": lambda card: card["shape"].update(hidden=8),
    "unknown size": lambda card: card["shape"].update(depth=8),
    "no tokenizer": lambda card: card.pop("tokenizer_fingerprint"),
    "no prompt format": lambda card: card.pop("prompt_format"),
}


@pytest.mark.parametrize("change", CARD_CHANGES.values(), ids=CARD_CHANGES)
def test_a_changed_card_is_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    change_card(folder, change)
    with user_error("router", str(folder)):
        load_router(folder)


WEIGHT_CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "a weight": lambda tensors: tensors["model.head.bias"].add_(1e-3),
    "no head": lambda tensors: tensors.pop("model.head.weight"),
    "a centroid": lambda tensors: tensors["classes.trained"][1].mul_(-1),
    "no centroids": lambda tensors: tensors.pop("classes.trained"),
    "one more": lambda tensors: tensors.update(other=torch.zeros(1)),
    "shape": lambda tensors: tensors.update({"model.head.bias": torch.zeros(9)}),
}


@pytest.mark.parametrize("change", WEIGHT_CHANGES.values(), ids=WEIGHT_CHANGES)
def test_changed_weights_are_refused(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    change_weights(folder, change)
    with user_error("router", str(folder)):
        load_router(folder)


def test_the_weights_of_another_router_are_refused(folder: Path, tmp_path: Path) -> None:
    make_router(seed=9, epochs=1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "router.safetensors", folder)
    with user_error("do not belong together", str(folder)):
        load_router(folder)


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    router = make_router(epochs=1)
    with torch.no_grad():
        router.model.head.bias[0] = float("nan")
    router.save(tmp_path)
    with user_error("NaN", str(tmp_path)):
        load_router(tmp_path)
