"""The lease of an output, on a local disk and in memory, with real processes that are killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest

from pipeline.storage.commit.lease import Lease
from pipeline.storage.store.objects import list_names, put
from tests.storage import memory_url, user_error

QUICK = {"beat": 0.05, "expiry": 0.4}
HOLD = """
from pipeline.storage.commit.lease import Lease
with Lease({url!r}, lambda: None):
    print("held", flush=True)
    input()
"""


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else memory_url()


def lease(url: str, said: list[str] | None = None, lost: threading.Event | None = None) -> Lease:
    event = lost or threading.Event()
    return Lease(url, event.set, (said if said is not None else []).append, **QUICK)


def test_a_second_driver_is_refused_while_the_first_lives(url: str) -> None:
    with lease(url), user_error(f"process {os.getpid()}", "is working on", "another --output"), lease(url):
        pass


def test_a_released_lease_is_taken_at_once(url: str) -> None:
    for _ in range(3):
        said: list[str] = []
        with lease(url, said):
            pass
        assert said == []
    with lease(url) as last:
        assert len(list_names(last.fs, last.folder)) == 1


def test_a_driver_that_lost_its_lease_leaves_none_behind(url: str) -> None:
    with lease(url) as first:
        (name,) = list_names(first.fs, first.folder)
        put(first.fs, f"{first.folder}/000001.json", first.fs.cat_file(f"{first.folder}/{name}"))
        first.fs.rm_file(f"{first.folder}/{name}")  # as the next holder does
    assert list_names(first.fs, first.folder) == ["000001.json"]


@pytest.mark.long
def test_one_of_many_racing_drivers_gets_it(url: str) -> None:
    held, most = 0, 0
    lock = threading.Lock()

    def take(number: int) -> str:
        nonlocal held, most
        try:
            with lease(url):
                with lock:
                    held += 1
                    most = max(most, held)
                time.sleep(0.3)
                with lock:
                    held -= 1
        except Exception as error:
            return str(error)
        return "held"

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(take, range(8)))
    assert most == 1
    assert "held" in results
    assert all(r == "held" or "is working on" in r for r in results)


@pytest.mark.long
def test_a_lease_without_heartbeat_is_taken_over_and_its_holder_told(url: str) -> None:
    said: list[str] = []
    lost = threading.Event()
    first = lease(url, lost=lost)
    first.beat = 1.0  # longer than the expiry: as good as hung
    with first, lease(url, said):
        assert "taking over from process" in said[-1]
        assert lost.wait(5)


@pytest.mark.long
def test_a_killed_process_of_this_machine_is_no_holder(tmp_path: Path) -> None:
    url = str(tmp_path / "out")
    words = [sys.executable, "-c", HOLD.format(url=url)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"held\n"
        first.send_signal(signal.SIGKILL)
        first.wait()
    said: list[str] = []
    with Lease(url, lambda: None, said.append):
        assert said == []  # a lease that has to expire first is waited for, and told


def test_a_reused_process_number_does_not_hold(tmp_path: Path) -> None:
    with lease(str(tmp_path)) as first:
        content = orjson.loads(first._content(0))
        content["process"] += "0"  # a process of this machine that began later
    put(first.fs, first._path(7), orjson.dumps(content))
    with lease(str(tmp_path)) as second:
        assert second._number == 8


def test_a_process_of_another_container_is_not_taken_for_dead(tmp_path: Path) -> None:
    """Its number means nothing here, although the boot is the same: only a minute without heartbeat ends it."""
    said: list[str] = []
    with lease(str(tmp_path)) as first:
        content = orjson.loads(first._content(0)) | {"pid": 2**22 + 1}  # no process has this number
        machine, numbers, started = content["process"].split()
        content["process"] = f"{machine} {numbers[:-1]}0] {started}"
    put(first.fs, first._path(7), orjson.dumps(content))
    with lease(str(tmp_path), said):
        assert "taking over" in said[-1]
    put(first.fs, first._path(9), orjson.dumps(content | {"process": f"{machine} {numbers} {started}"}))
    said.clear()
    with lease(str(tmp_path), said):
        assert said == [], "of this one it is seen that it is gone"


def test_of_two_that_believe_to_be_first_one_notices(url: str) -> None:
    """In a store without conditional writes both may have written the object of one number."""
    lost = threading.Event()
    with lease(url, lost=lost) as first:
        other = orjson.loads(first._content(0)) | {"holder": "another"}
        while not lost.wait(0.02):  # its own beat may come between
            put(first.fs, first._path(first._number), orjson.dumps(other))


def test_the_store_may_fail_for_some_beats(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    lost = threading.Event()
    with lease(url, said, lost) as held:
        broken = threading.Event()
        real = held._last_number

        def failing() -> int:
            if not broken.is_set():
                broken.set()
                raise RuntimeError("store is down")
            return real()

        monkeypatch.setattr(held, "_last_number", failing)
        assert broken.wait(5)
        time.sleep(0.2)
    assert any("no heartbeat written" in line for line in said)
    assert not lost.is_set()


@pytest.mark.long
def test_what_ended_the_job_is_told_even_where_the_lease_cannot_be_released(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    def stopped() -> None:
        with lease(url, said):
            monkeypatch.setattr("pipeline.storage.commit.lease.put", full)
            raise ValueError("the reason")

    said: list[str] = []
    with pytest.raises(ValueError, match="the reason"):
        stopped()
    assert said[-1].endswith("OSError: not released")
    monkeypatch.undo()
    with lease(url):  # taken over once no heartbeat has come for a while
        pass


def test_what_a_driver_killed_in_a_heartbeat_left_is_removed_unless_another_works(tmp_path: Path) -> None:
    with lease(str(tmp_path)) as first:
        left = tmp_path / "_lease" / f".{Path(first._path(first._number)).name}.0123abcd.part"
    left.write_bytes(b"{")
    with lease(str(tmp_path)) as second:
        partial = tmp_path / "_lease" / f".{Path(second._path(second._number)).name}.0123abcd.part"
        partial.write_bytes(b"{")
        lease(str(tmp_path)).remove_partial()
        assert partial.exists()
    partial.write_bytes(b"{")
    lease(str(tmp_path)).remove_partial()
    assert [path.suffix for path in (tmp_path / "_lease").iterdir()] == [".json"]
