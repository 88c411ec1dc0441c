"""A real S3 server on free ports."""

from collections.abc import Iterator

import pytest

from tests.s3.weed import BUCKET, Weed


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    """One server for all tests that only use it."""
    server = Weed(tmp_path_factory.mktemp("s3"))
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def s3(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket's URL; credentials and endpoint are set in the environment."""
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}"
