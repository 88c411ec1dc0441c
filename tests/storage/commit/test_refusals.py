"""What a store refuses for good ends a commit as a `StoreError`, which stops the job; no other error does."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.store.objects import StoreError
from tests.storage import memory_url
from tests.storage.commit.committing import write_shard

FULL = OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def answering(call: str, error: Exception) -> Iterator[None]:
    with mock.patch.object(MemoryFileSystem, call, side_effect=error):
        yield


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        ("pipe_file", PermissionError("no rights"), r"^PermissionError: no rights$"),
        ("pipe_file", FULL, r"^OSError: \[Errno 28\] No space left on device$"),
        ("pipe_file", OSError(errno.EDQUOT, "Quota"), r"^OSError: .*Quota$"),
        ("cat_file", PermissionError("no rights"), r"^PermissionError: no rights$"),
    ],
)
def test_a_commit_that_the_store_refuses_is_a_store_error(call: str, error: Exception, said: str) -> None:
    store = MarkerStore(memory_url())
    with answering(call, error), pytest.raises(StoreError, match=said) as caught:
        write_shard(store, "a", [0, 1])
    assert caught.value.__cause__ is error
    assert list(store.shards(3)) == []
    write_shard(store, "a", [0, 1])
    assert len(list(store.shards(3))) == 1


@pytest.mark.parametrize("error", [FileNotFoundError("no such bucket"), ValueError("a mistake")])
def test_other_errors_of_a_commit_stay_what_they_are(error: Exception) -> None:
    with answering("pipe_file", error), pytest.raises(type(error)):
        write_shard(MarkerStore(memory_url()), "a", [0, 1])
