"""One Ray head for all tests that submit jobs to it."""

from collections.abc import Iterator

import pytest

from tests.cluster.head import Head


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """A head with a job server and token authentication."""
    started = Head()
    yield started
    started.stop()
