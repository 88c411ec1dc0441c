"""Objects in stores that fail for a moment, race, and run full."""

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import botocore.exceptions
import fsspec
import pytest
import tenacity
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage.store import objects
from pipeline.storage.store.objects import MAX_ATTEMPTS, create, is_transient, list_names, put, read, remove
from tests.storage import memory_url

LOCAL = LocalFileSystem()
TRANSIENT = [
    ConnectionResetError("reset"),
    TimeoutError("slow"),
    OSError(errno.EIO, "an error of the server"),
    botocore.exceptions.EndpointConnectionError(endpoint_url="http://store"),
]
FINAL = [PermissionError("403"), OSError(errno.ENOSPC, "disk full"), ValueError("a bug")]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (put, create, read, remove, list_names):
        monkeypatch.setattr(call.retry, "wait", tenacity.wait_none())  # type: ignore[attr-defined]


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[fsspec.AbstractFileSystem, str]:
    if request.param == "local":
        return LOCAL, str(tmp_path / "new" / "a.json")
    fs, path = fsspec.url_to_fs(f"{memory_url()}/a.json")
    return fs, path


def failing(fs: Any, name: str, errors: list[Exception]) -> Any:
    """The method ``name`` of a file system raises each of ``errors`` before it works."""
    real: Callable[..., Any] = getattr(fs, name)
    left = list(errors)

    def call(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop(0)
        return real(*args, **kwargs)

    return mock.patch.object(fs, name, call)


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_a_store_that_fails_for_a_moment_is_asked_again(error: Exception) -> None:
    fs = MemoryFileSystem()
    path = f"/{os.urandom(4).hex()}/a"
    with failing(fs, "pipe_file", [error] * (MAX_ATTEMPTS - 1)):
        put(fs, path, b"one")
    with failing(fs, "cat_file", [error] * 2):
        assert read(fs, path) == b"one"
    with failing(fs, "pipe_file", [error]):
        assert create(fs, path + "b", b"two")
    with failing(fs, "ls", [error]):
        assert list_names(fs, path.rpartition("/")[0]) == ["a", "ab"]
    with failing(fs, "rm_file", [error]):
        remove(fs, path)
    assert read(fs, path) is None


def test_a_store_that_stays_broken_is_given_up() -> None:
    fs = MemoryFileSystem()
    with failing(fs, "pipe_file", [ConnectionResetError("reset")] * MAX_ATTEMPTS), pytest.raises(ConnectionResetError):
        put(fs, "/broken/a", b"one")


@pytest.mark.parametrize("error", FINAL, ids=repr)
def test_what_does_not_pass_is_raised_at_once(error: Exception) -> None:
    fs = MemoryFileSystem()
    with failing(fs, "pipe_file", [error]), pytest.raises(type(error)):
        put(fs, "/final/a", b"one")
    assert not is_transient(error)


def test_an_object_is_created_once(place: tuple[fsspec.AbstractFileSystem, str]) -> None:
    fs, path = place
    assert create(fs, path, b"one")
    assert not create(fs, path, b"two")
    assert create(fs, path, b"one"), "a try whose answer was lost"
    assert read(fs, path) == b"one"


def test_a_store_that_overwrites_whatever_it_is_told_is_looked_at_first() -> None:
    class Overwrites(MemoryFileSystem):
        protocol = "elsewhere"

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
            super().pipe_file(path, value, mode="overwrite", **kwargs)

    fs, path = Overwrites(), f"{memory_url().removeprefix('memory:/')}/a.json"
    assert [create(fs, path, b"first"), create(fs, path, b"second"), create(fs, path, b"first")] == [True, False, True]
    assert read(fs, path) == b"first"


def test_one_of_racing_writers_creates_an_object(place: tuple[fsspec.AbstractFileSystem, str]) -> None:
    fs, path = place
    with ThreadPoolExecutor(16) as pool:
        created = list(pool.map(lambda n: create(fs, path, str(n).encode()), range(16)))
    assert sum(created) == 1
    assert read(fs, path) == str(created.index(True)).encode()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        mock.patch.object(objects.os, "fsync", side_effect=OSError(errno.ENOSPC, "disk full")),
        pytest.raises(OSError, match="disk full"),
    ):
        put(LOCAL, str(tmp_path / "a"), b"x" * 1000)
    assert list(tmp_path.iterdir()) == []


def test_names_are_those_with_the_prefix(place: tuple[fsspec.AbstractFileSystem, str]) -> None:
    fs, path = place
    folder = path.rpartition("/")[0]
    for name in ("w1-b", "w1-a", "w10-a", "x"):
        put(fs, f"{folder}/{name}", b"")
    assert list_names(fs, folder, "w1-") == ["w1-a", "w1-b"]
    assert list_names(fs, folder) == ["w1-a", "w1-b", "w10-a", "x"]


def test_what_is_gone_is_removed_and_read_as_nothing(place: tuple[fsspec.AbstractFileSystem, str]) -> None:
    fs, path = place
    remove(fs, path)
    assert read(fs, path) is None


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_links_is_looked_at_first(tmp_path: Path, number: int) -> None:
    path = str(tmp_path / "a.json")
    with mock.patch.object(os, "link", side_effect=OSError(number, "no links here")):
        assert create(LOCAL, path, b"one")
        assert not create(LOCAL, path, b"two")
        assert create(LOCAL, path, b"one"), "of two tries of one writer"
    assert read(LOCAL, path) == b"one"
    assert os.listdir(tmp_path) == ["a.json"]
