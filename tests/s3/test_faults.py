"""The commit protocol and whole jobs over a store that fails, answers nothing, or dies and comes back."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import tenacity

from pipeline.records import DATA, DEAD
from pipeline.storage import read_dead, read_run
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard, shard_prefix
from pipeline.storage.commit.window import commit_shard, finish_window
from pipeline.storage.store.objects import MAX_ATTEMPTS, create, list_names, put, read, remove
from tests import tiny
from tests.rows import data_of
from tests.s3.proxy import Faults, Proxy
from tests.s3.weed import BUCKET, Weed, environment

pytestmark = pytest.mark.s3

# Every third request fails, and of those that fail two in five were done.
OFTEN = Faults(slow_down=0.08, server_error=0.06, reset_before=0.06, reset_after=0.12, silent_after=0.02, delay=0.1)
# A client that is less patient than the job's own, and one that asks once: the rest is up to `storage.store.objects`.
IMPATIENT = {"read_timeout": 0.5}
ONCE = IMPATIENT | {"retries": {"mode": "standard", "total_max_attempts": 1}}


@pytest.fixture
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (put, create, read, remove, list_names):
        monkeypatch.setattr(call.retry, "wait", tenacity.wait_none())  # type: ignore[attr-defined]


@pytest.fixture
def direct(s3: str) -> Iterator[fsspec.AbstractFileSystem]:
    """The store as it is, past any proxy."""
    fsspec.filesystem("s3").clear_instance_cache()
    yield fsspec.filesystem("s3")
    fsspec.filesystem("s3").clear_instance_cache()


@pytest.fixture
def failing(weed: Weed, direct: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Whoever opens a URL of the bucket from now on meets faults."""
    with Proxy(weed.port, OFTEN, seed=11) as proxy:
        for name, value in environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("FSSPEC_S3", json.dumps({"config_kwargs": IMPATIENT}))  # of processes to come
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": ONCE})
        fsspec.filesystem("s3").clear_instance_cache()
        yield proxy


def table_of(rows: list[int], schema: pa.Schema) -> pa.Table:
    if schema is DEAD:
        return pa.Table.from_pylist(
            [dict.fromkeys(DEAD.names, "") | {"id": f"r{row}", "row": row} for row in rows], schema=DEAD
        )
    return data_of(rows)


def commit(store: MarkerStore, window: int, attempt: str, task: int, rows: list[int]) -> None:
    """Commit a shard whose last row is a dead letter."""
    data, dead = table_of(rows[:-1], DATA), table_of(rows[-1:], DEAD)
    places = np.array(rows)
    name = f"{shard_prefix(window)}{attempt}-{task:06d}"
    commit_shard(store, Shard(name, None, None, places[:-1], places[-1:], count_rows(data, dead)), data, dead)


@pytest.mark.usefixtures("_no_pauses")
def test_each_call_does_its_work_once_although_requests_fail(failing: Proxy, direct: fsspec.AbstractFileSystem) -> None:
    fs, folder = MarkerStore(f"s3://{BUCKET}/calls").fs, f"{BUCKET}/calls"
    for number in range(4):
        put(fs, f"{folder}/{number}", b"first")
        assert create(fs, f"{folder}/new-{number}", b"mine"), "what a lost answer hid is one's own"
        assert not create(fs, f"{folder}/new-{number}", b"other")
        assert read(fs, f"{folder}/{number}") == b"first"
        remove(fs, f"{folder}/{number}")
        assert read(fs, f"{folder}/{number}") is None
    assert list_names(fs, folder, "new-") == sorted(f"new-{number}" for number in range(4))
    assert direct.cat_file(f"{folder}/new-0") == b"mine"
    assert all(failing.met[fault] for fault in ("slow_down", "server_error", "reset_before", "reset_after"))


@pytest.mark.slow
@pytest.mark.usefixtures("_no_pauses")
def test_writers_that_race_through_faults_commit_every_row_once(
    failing: Proxy, direct: fsspec.AbstractFileSystem
) -> None:
    url = f"s3://{BUCKET}/race"
    store = MarkerStore(url)
    # Two tries of each shard at the same time, and a second attempt over half of the rows.
    shards = [(0, "a", task, list(range(task * 5, task * 5 + 5))) for task in range(6)]
    again = [(0, "b", task, list(range(task * 7, task * 7 + 7))) for task in range(2)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda shard: commit(store, *shard), [*shards, *shards, *again]))
    files = finish_window(store, 0, 30)
    assert (files.counts.data + files.counts.dead) == 30
    ids = [
        identity
        for name in (*files.data, *files.dead)
        for identity in pq.read_table(f"{BUCKET}/race/{name}", filesystem=direct)["id"].to_pylist()
    ]
    assert Counter(ids) == Counter(f"r{row}" for row in range(30))
    there = [
        path.removeprefix(f"{BUCKET}/race/") for kind in ("data", "dead") for path in direct.ls(f"{BUCKET}/race/{kind}")
    ]
    assert sorted(there) == sorted([*files.data, *files.dead]), "what lost a race is swept"
    assert [path.rsplit("/", 1)[1] for path in direct.ls(f"{BUCKET}/race/_commits")] == ["window-000000.json"]
    assert failing.met["reset_after"] + failing.met["silent_after"] > 3
    assert failing.met["through"] < failing.met.total() * 0.8


@pytest.mark.usefixtures("_no_pauses")
def test_a_store_that_says_nothing_is_given_up_after_a_while(
    weed: Weed, direct: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(direct, f"{BUCKET}/silent/a", b"there")
    with Proxy(weed.port, Faults(silent_after=1.0), seed=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": ONCE})
        monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
        fsspec.filesystem("s3").clear_instance_cache()
        with pytest.raises(Exception, match=r"(?i)time"):
            read(MarkerStore(f"s3://{BUCKET}/silent").fs, f"{BUCKET}/silent/a")
    assert proxy.met.total() == MAX_ATTEMPTS


def job_words(folder: str, model: Path, bank: Path, router: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "jobs.generate", "--input", f"{folder}/in.jsonl", "--output", f"{folder}/out"),
        *("model=custom", f"model.path={model}", "model.dtype=fp32", "bank=custom", f"bank.path={bank}"),
        *("router=custom", f"router.path={router}", "generation.max_new_tokens=8", "shuffle.shard_records=8"),
        *("window.records=25", "cluster.cpus=2", "errors.budget=0.2"),
    ]


def write_input(fs: fsspec.AbstractFileSystem, url: str, count: int) -> set[str]:
    rows = [{"id": f"r{i}", "prompt": tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0]} for i in range(count)]
    put(fs, f"{url}/in.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode() + b"{cut\n")
    return {row["id"] for row in rows}


def assert_each_once(folder: str, ids: set[str]) -> None:
    fsspec.filesystem("s3").clear_instance_cache()
    assert Counter(read_run(f"{folder}/out").to_table()["id"].to_pylist()) == Counter(ids)
    assert read_dead(f"{folder}/out").to_table()["error_type"].to_pylist() == ["InvalidJson"]


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.slow
def test_a_job_through_a_store_that_fails_answers_every_record_once(
    failing: Proxy,
    direct: fsspec.AbstractFileSystem,
    weed: Weed,
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: Path,
    tiny_bank: Path,
    tiny_router: Path,
) -> None:
    folder = f"s3://{BUCKET}/job"
    ids = write_input(direct, folder, 24)
    words = job_words(folder, tiny_model, tiny_bank, tiny_router)
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert failing.met.total() - failing.met["through"] > 20
    monkeypatch.setenv("AWS_ENDPOINT_URL", weed.environment["AWS_ENDPOINT_URL"])
    assert_each_once(folder, ids)


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.slow
def test_a_job_goes_on_when_the_store_is_killed_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_bank: Path, tiny_router: Path
) -> None:
    weed = Weed(tmp_path)
    try:
        for name, value in weed.environment.items():
            monkeypatch.setenv(name, value)
        fsspec.filesystem("s3").clear_instance_cache()
        store, folder = fsspec.filesystem("s3"), f"s3://{BUCKET}/job"
        ids = write_input(store, folder, 60)
        words = job_words(folder, tiny_model, tiny_bank, tiny_router)
        job = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while job.poll() is None and len(list_names(store, f"{BUCKET}/job/out/_commits")) < 2:
            time.sleep(0.02)
        assert job.poll() is None, "the job ended before the store could be killed"
        weed.kill()
        time.sleep(4)
        weed.start()
        said = job.communicate(timeout=500)[0]
        if job.returncode != 0:
            again = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
            assert again.returncode == 0, said + again.stdout + again.stderr
        assert_each_once(folder, ids)
    finally:
        weed.kill()
