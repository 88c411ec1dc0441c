"""Fixtures that many tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import tiny


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
