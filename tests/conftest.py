"""Fixtures that many tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import tiny

# Markers of tests that start processes of their own: these run one after another, beside all others.
_OWN_PROCESSES = ("chaos", "cluster", "s3", "smollm", "browser")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests for `pytest -n 2`: those that share one local Ray, those with processes of their own, and files.

    Long groups come first, so that no process is left with one at the end.
    """
    order = {"local_ray": 0, "processes": 1}
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: order.get(_group(item), 2))


def _group(item: pytest.Item) -> str:
    if any(item.get_closest_marker(name) for name in _OWN_PROCESSES):
        return "processes"
    return "local_ray" if item.get_closest_marker("ray") else item.path.name


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama and its tokenizer."""
    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_bank(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder of eight adapters for the tiny model."""
    return tiny.make_bank(tmp_path_factory.mktemp("bank"), tiny_model)


@pytest.fixture(scope="session")
def tiny_router(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder of a router for the tiny bank."""
    return tiny.make_router(tmp_path_factory.mktemp("router"), tiny_model)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    import ray

    from pipeline.cluster.connect import connect

    connect(None, 2)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def _no_token_for_others() -> Iterator[None]:
    """Clients of a cluster with tokens say so to their whole process; a local Ray of a later test has none."""
    before = os.environ.get("RAY_AUTH_MODE")
    yield
    if before is None:
        os.environ.pop("RAY_AUTH_MODE", None)
    else:
        os.environ["RAY_AUTH_MODE"] = before


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
