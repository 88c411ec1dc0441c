"""The storage part against a real S3 server."""

import json
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from jobs import generate
from pipeline.errors import UserError
from pipeline.storage import read_run
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard, finish_window
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.files import list_input
from pipeline.storage.input.plan import plan_input
from pipeline.storage.input.read import read_split
from pipeline.storage.store.objects import create, list_names, put, read
from tests.rows import data_of

pytestmark = pytest.mark.s3


@pytest.fixture
def folder(s3: str, request: pytest.FixtureRequest) -> str:
    """A folder of its own for each test."""
    fsspec.filesystem("s3").clear_instance_cache()
    return f"{s3}/{request.node.name}"


def write_rows(url: str, count: int) -> None:
    fs, path = fsspec.url_to_fs(url)
    put(fs, path, b"".join(json.dumps({"id": f"r{i}", "prompt": f"p{i}"}).encode() + b"\n" for i in range(count)))


def test_every_record_is_read_from_a_folder_or_glob_on_s3(folder: str) -> None:
    write_rows(f"{folder}/day=2026-11-01/a.jsonl", 5000)
    write_rows(f"{folder}/day=2026-11-02/b.jsonl", 10)
    for url in (f"{folder}{end}" for end in ("/day=*/*.jsonl", "/day=*", "/day=2026-11-0[12]/", "")):
        plan = plan_input(url, 3000, Columns())
        assert (plan.rows, plan.windows, len(plan.files)) == (5010, 2, 2)
        assert all(file.version for file in plan.files)
        splits = [split for window in range(plan.windows) for split in plan.splits(window)]
        found = [r for split in splits for r in read_split(url, split, Columns(), {})]
        assert [r.id for r in found] == [f"r{i}" for i in range(5000)] + [f"r{i}" for i in range(10)]
        assert [r.passed["day"] for r in found] == ["2026-11-01"] * 5000 + ["2026-11-02"] * 10


def test_an_object_of_that_very_name_goes_before_a_glob_on_s3(folder: str) -> None:
    for name in ("we[i]rd.jsonl", "weird.jsonl", "README.md"):
        write_rows(f"{folder}/{name}", 1)
    assert [file.path.rpartition("/")[2] for file in list_input(f"{folder}/we[i]rd.jsonl").files] == ["we[i]rd.jsonl"]
    assert list_input(f"{folder}/").skipped == ["README.md"]


def test_only_files_with_a_marker_are_seen(folder: str) -> None:
    store = MarkerStore(folder)
    rows = [3, 1, 2]
    data = data_of(rows)
    none = np.empty(0, np.int64)
    shard = Shard("w000000-a-000000", None, None, np.array(rows), none, count_rows(data, pa.table({})))
    put(store.fs, f"{store.root}/data/w000000-dead-000000.parquet", b"half an obj")
    assert store.committed_files("data") == []
    commit_shard(store, shard, data, pa.table({}))
    [committed] = store.committed_files("data")
    assert committed.rsplit("/", 1)[1].startswith("w000000-a-000000-")
    assert finish_window(store, 0, 3).counts.data == 3
    assert MarkerStore(folder).newest_marker(0)[1].counts.mixtures == {"a:1.0": 3}


def test_what_others_wrote_since_a_listing_is_read(folder: str) -> None:
    fs, others = MarkerStore(folder).fs, fsspec.filesystem("s3", skip_instance_cache=True)
    put(fs, f"{folder}/_commits/a", b"one")
    assert list_names(fs, f"{folder}/_commits") == ["a"]
    others.pipe_file(f"{folder}/_commits/b", b"two")
    assert read(fs, f"{folder}/_commits/b") == b"two"
    assert not create(fs, f"{folder}/_commits/b", b"three")


def test_files_committed_since_a_listing_are_among_the_committed_ones(folder: str) -> None:
    reader, writer = MarkerStore(folder), MarkerStore(folder)
    # A writer in another process, with listings of its own; a store is frozen.
    object.__setattr__(writer, "fs", fsspec.filesystem("s3", skip_instance_cache=True))
    none, rows = np.empty(0, np.int64), [0, 1]
    data, empty = data_of(rows), pa.table({})
    put(reader.fs, f"{folder}/data/of-another-tool", b"")
    assert reader.fs.ls(f"{folder}/data")
    commit_shard(
        writer, Shard("w000000-a-000000", None, None, np.array(rows), none, count_rows(data, empty)), data, empty
    )
    assert [reader.fs.size(path) > 0 for path in reader.committed_files("data")] == [True]


def test_wrong_places_on_s3_are_one_line(folder: str) -> None:
    with pytest.raises(UserError, match=r"input: (cannot read|no file at) s3://"):
        list_input(f"{folder}/nothing.jsonl")


@pytest.mark.ray
def test_the_job_reads_from_and_commits_to_s3(
    folder: str, tiny_model: Path, tiny_bank: Path, tiny_router: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(f"{folder}/in/a.jsonl", 30)
    words = [
        *("--input", f"{folder}/in/", "--output", f"{folder}/out", "shuffle.shard_records=8"),
        *("model=custom", f"model.path={tiny_model}", "model.dtype=fp32", "bank=custom", f"bank.path={tiny_bank}"),
        *("router=custom", f"router.path={tiny_router}", "generation.max_new_tokens=4", "cluster.cpus=2"),
    ]
    command = [sys.executable, "-m", "jobs.generate", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "30 in, 30 committed, 0 dead" in done.stdout
    assert generate.main(words) == 0
    assert "tokens     0 generated" in capsys.readouterr().out, "the second time there is nothing to do"
    assert sorted(read_run(f"{folder}/out").to_table()["id"].to_pylist()) == sorted(f"r{i}" for i in range(30))
