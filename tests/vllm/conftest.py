"""The real vLLM and the native engine, with the demo's model and bank. Skipped where vLLM is not installed."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.vllm.engines import Engines, start

if find_spec("vllm") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def engines() -> Iterator[Callable[[str], Engines]]:
    """Both engines in a dtype, started when they are first asked for."""
    started: dict[str, Engines] = {}

    def get(dtype: str) -> Engines:
        if dtype not in started:
            started[dtype] = start(dtype)
        return started[dtype]

    yield get
    for engines in started.values():
        engines.close()


@pytest.fixture(scope="session")
def fp32(engines: Callable[[str], Engines]) -> Engines:
    """Both engines in fp32."""
    return engines("fp32")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Both cores: the models here are not tiny."""


@pytest.fixture(scope="session")
def root() -> Path:
    """The project."""
    return Path(__file__).parents[2]
