"""Fixtures that many tests share.

They import what they need when they need it: pytest-xdist's controller loads this file too, and runs no test.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random Llama and its tokenizer."""
    from tests import tiny

    return tiny.make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_bank(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder of eight adapters for the tiny model."""
    from tests import tiny

    return tiny.make_bank(tmp_path_factory.mktemp("bank"), tiny_model)


@pytest.fixture(scope="session")
def tiny_router(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Folder of a router for the tiny bank."""
    from tests import tiny

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
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
