"""What a store does to a driver, and what it then says."""

import errno
from pathlib import Path
from unittest import mock

import pytest

from pipeline.job.stop import StopKind, StoppedError, stop_on_store_errors
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.window import finish_window
from pipeline.storage.store.objects import StoreError
from tests.storage import memory_url
from tests.storage.commit.committing import WINDOW, write_shard


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StoreError("No space left on device"), "commit: No space left on device"),
        (ConnectionResetError("by peer"), "output: ConnectionResetError: by peer"),
        (TimeoutError("120 s"), "output: TimeoutError: 120 s"),
        (OSError(errno.EIO, "Input/output error"), r"output: OSError: \[Errno 5\] Input/output error"),
        (FileNotFoundError("bucket/out/a.json"), "store: gone since it was listed: bucket/out/a.json"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/o/a.json"), "store: gone since it was listed: /o/a.json"),
    ],
)
def test_outages_of_the_store_stop_the_job_with_their_reason(error: Exception, said: str) -> None:
    with pytest.raises(StoppedError, match=f"^{said}$") as caught, stop_on_store_errors():
        raise error
    assert caught.value.__cause__ is error
    assert caught.value.reason.kind is StopKind.STORE


def test_other_errors_are_not_the_stores() -> None:
    with pytest.raises(ZeroDivisionError), stop_on_store_errors():
        raise ZeroDivisionError


def test_a_store_that_lists_less_than_it_has_stops_the_job(tmp_path: Path) -> None:
    log = MarkerStore(memory_url())
    write_shard(log, "a-0", [0, 1, 3])
    nothing = mock.patch("pipeline.storage.commit.marker_store.list_names", return_value=[])
    with nothing, pytest.raises(StoppedError), stop_on_store_errors():
        finish_window(log, WINDOW, 3)
    assert finish_window(log, WINDOW, 3).counts.data == 2
