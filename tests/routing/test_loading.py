"""Kinds of routers: another kind is a subclass of `Router` and one entry in `ROUTER_KINDS`, as here."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from pipeline.records import Mixture
from pipeline.routing import RoutingPolicy, SentenceSettings
from pipeline.routing.explanations import explain
from pipeline.routing.extension import add_class
from pipeline.routing.loading import ROUTER_KINDS, load_router, load_router_for
from pipeline.routing.router import Classification, Router, tokenizer_fingerprint
from pipeline.routing.sentence_routes import route_sentences
from pipeline.routing.sentences import Sentence
from tests.storage import user_error

VOCABULARY = {"a": 0, "b": 1, "c": 2}
CARD = {
    "kind": "first-token",
    "labels": ["art", "legal"],
    "tokenizer_fingerprint": tokenizer_fingerprint(VOCABULARY),
    "prompt_format": "raw",
}


class FirstTokenRouter(Router):
    """The first token is the index of the adapter; any other is out of domain."""

    kind = "first-token"

    def __init__(self, card: dict[str, Any]) -> None:
        self.labels = card["labels"]
        self.vocab_size = 3
        self.trained_for = {name: card[name] for name in ("tokenizer_fingerprint", "prompt_format")}

    @classmethod
    def load(cls, folder: Path, card: dict[str, Any]) -> Self:
        return cls(card)

    def classify(self, prompts: Sequence[Sequence[int]], acceptance: float) -> Classification:
        first = torch.tensor([prompt[0] for prompt in prompts])
        known = first < len(self.labels)
        probabilities = torch.nn.functional.one_hot(first.clamp(max=1), len(self.labels)).double()
        return Classification(probabilities, known.double(), known)

    def threshold(self, acceptance: float) -> float:
        return 0.5

    @property
    def fingerprint(self) -> str:
        return "first-token"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(ROUTER_KINDS, "first-token", FirstTokenRouter)
    (tmp_path / "router.json").write_text(json.dumps(CARD))
    return tmp_path


def test_another_kind_is_loaded_checked_routed_and_explained(folder: Path) -> None:
    router = load_router_for(folder, ["art", "legal"], "bank", VOCABULARY, "raw")
    routes = router.route([[1, 2], [2, 0]], RoutingPolicy())
    assert [(r.mixture, r.score, r.fallback) for r in routes] == [
        (Mixture.of({"legal": 1.0}), 1.0, False),
        (Mixture(), 0.0, True),
    ]
    (reason,) = explain(router, [[0]], RoutingPolicy())
    assert (reason.classes[0], reason.mixture.key, reason.accepted) == (("art", 1.0), "art:1.0", True)
    sentences = [(Sentence(0, 0), Sentence(1, 0))]
    (route,) = route_sentences(router, RoutingPolicy(), [[0, 1]], sentences, SentenceSettings().context_sentences)
    assert route.mixture == Mixture.of({"art": 1.0})


def test_the_checks_are_those_of_every_kind(folder: Path) -> None:
    with user_error("names adapters that the bank", "legal"):
        load_router_for(folder, ["art"], "bank", VOCABULARY, "raw")
    with user_error("prompt_format=raw"):
        load_router_for(folder, ["art", "legal"], "bank", VOCABULARY, "chat")
    larger = VOCABULARY | {"d": 3}
    (folder / "router.json").write_text(json.dumps(CARD | {"tokenizer_fingerprint": tokenizer_fingerprint(larger)}))
    with user_error("fewer tokens"):
        load_router_for(folder, ["art", "legal"], "bank", larger, "raw")
    with user_error("can be added to the kind mlp", "first-token"):
        add_class(load_router(folder), "news", [[0]] * 8, 0.005)


@pytest.mark.parametrize("kind", ["forest", None, ["mlp"], {"mlp": 1}, "a\nb\x1b[2J"])
def test_an_unknown_kind_is_refused_by_name(folder: Path, kind: Any) -> None:
    (folder / "router.json").write_text(json.dumps(CARD | {"kind": kind}))
    with user_error("router: cannot load", str(folder), "the kind in router.json is", "known kinds are mlp"):
        load_router(folder)
