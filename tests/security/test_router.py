"""Routers made to do harm, each with a fingerprint that fits: refused with one line, and nothing large is built."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load, save_file

from pipeline.routing import RoutingPolicy
from pipeline.routing.loading import load_router, load_router_for
from pipeline.routing.router import tokenizer_fingerprint
from tests.routing import VOCABULARY, make_router
from tests.security.limits import check_length
from tests.security.test_adapters import FILES
from tests.storage import user_error

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("router")
    make_router(epochs=1).save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A saved router that may be broken."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_the_copy_itself_is_good(folder: Path) -> None:
    load_router(folder)


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_weights_that_are_not_what_they_say_are_refused(folder: Path, content: bytes) -> None:
    (folder / "router.safetensors").write_bytes(content)
    with user_error("router", str(folder)):
        load_router(folder)


CARDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a vocabulary of 10**12": lambda card: card["shape"].update(vocab_size=10**12),
    "a vocabulary of 2**31 - 1": lambda card: card["shape"].update(vocab_size=2**31 - 1),
    "a hidden layer of 10**9": lambda card: card["shape"].update(hidden=10**9),
    "a size as text": lambda card: card["shape"].update(hidden="256"),
    "a size that is true": lambda card: card["shape"].update(classes=True),
    "a negative size": lambda card: card["shape"].update(embedding=-96),
    "a shape in a list": lambda card: card.update(shape=[1]),
    "labels as text": lambda card: card.update(labels="art"),
    "labels in lists": lambda card: card.update(labels=[["art"], ["legal"], ["med"]]),
    "a label twice": lambda card: card.update(labels=["art", "art", "med"]),
    "a label more": lambda card: card["labels"].append("more"),
    "an unknown fallback": lambda card: card.update(fallback="none"),
    "a temperature of 0": lambda card: card.update(temperature=0),
    "a temperature near 0": lambda card: card.update(temperature=1e-310),
    "a temperature as text": lambda card: card.update(temperature="1"),
    "a temperature that is no number": lambda card: card.update(temperature=float("nan")),
    "a temperature of 400 digits": lambda card: card.update(temperature=10**400),
    "thresholds in a list": lambda card: card.update(gate_thresholds=[0.5]),
    "a threshold as text": lambda card: card["gate_thresholds"].update({"0.99": "0.5"}),
    "a threshold of no share": lambda card: card["gate_thresholds"].update({"0.9\n\x1b[2J": 0.5}),
    "a format that is a number": lambda card: card.update(prompt_format=1),
}


@pytest.mark.parametrize("change", CARDS.values(), ids=CARDS)
def test_a_card_with_wrong_values_is_refused(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / "router.json").read_text())
    change(card)
    (folder / "router.json").write_text(json.dumps(card))
    unbuilt = mock.patch(
        "pipeline.routing.mlp_router.RouterNetwork", side_effect=AssertionError("built before it was checked")
    )
    with unbuilt, user_error("router: cannot load", str(folder)):
        load_router(folder)


def test_weights_that_would_fill_the_memory_are_not_read(folder: Path) -> None:
    with (folder / "router.safetensors").open("r+b") as f:
        f.truncate(2**30)
    with user_error("router: cannot load", "it has 1073741824 bytes, more than 536870912"):
        load_router(folder)


def test_weights_whose_sums_are_no_numbers_give_no_route(folder: Path) -> None:
    router = load_router(folder)
    assert router.route([[1, 2]], RoutingPolicy())
    router._network.head.bias.data.fill_(float("inf"))
    with user_error("router: its weights give NaN or infinite probabilities"):
        router.route([[1, 2]], RoutingPolicy())


@pytest.mark.parametrize("content", [b"[" * 10**6, b"[]", b"1"], ids=len)
def test_a_card_that_cannot_be_parsed_is_refused(folder: Path, content: bytes) -> None:
    (folder / "router.json").write_bytes(content)
    with user_error("router: cannot load", str(folder)):
        load_router(folder)


def test_a_card_that_would_fill_the_memory_is_not_read(folder: Path) -> None:
    check_length(folder / "router.json", lambda: load_router(folder), "router: cannot load")


TENSORS: dict[str, Callable[[Tensors], object]] = {
    "held-out prompts of another width": lambda t: t.update(
        {"held_out.embedded": t["held_out.embedded"][:, :7].clone()}
    ),
    "centroids of whole numbers": lambda t: t.update({"classes.trained": t["classes.trained"].int()}),
    "targets of no label": lambda t: t.update({"held_out.targets": t["held_out.targets"] + 99}),
    "negative targets": lambda t: t.update({"held_out.targets": t["held_out.targets"] - 9}),
    "targets that are no whole numbers": lambda t: t.update({"held_out.targets": t["held_out.embedded"][:, 0].clone()}),
    "flat centroids": lambda t: t.update({"classes.trained": t["classes.trained"][0].clone()}),
    "a centroid without a label": lambda t: t.update({"classes.added": t["classes.trained"][:1].clone()}),
    "a network of whole numbers": lambda t: t.update({"model.head.bias": t["model.head.bias"].int()}),
}


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit_each_other_are_refused(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = dict(load((folder / "router.safetensors").read_bytes()))
    change(tensors)
    save_file(tensors, folder / "router.safetensors")
    with user_error("router: cannot load", str(folder)):
        load_router(folder)


@pytest.mark.parametrize("name", ["router.json", "router.safetensors"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with user_error("regular file", str(folder)):
        load_router(folder)


@pytest.mark.long
def test_a_router_of_a_smaller_vocabulary_is_refused(folder: Path) -> None:
    vocabulary = {str(n): n for n in range(VOCABULARY + 1)}
    router = load_router(folder)
    router.card["tokenizer_fingerprint"] = tokenizer_fingerprint(vocabulary)
    router.save(folder)
    with user_error(str(folder), "fewer tokens"):
        load_router_for(folder, router.labels, "bank", vocabulary, "chat")


def test_labels_that_are_no_names_are_shown_on_one_line(folder: Path) -> None:
    router = load_router(folder)
    router.labels = ["a\nb\x1b[2J", "x" * 10**6]
    with user_error("'a\\nb\\x1b[2J'"):
        router.check_bank(["art"], "bank")
