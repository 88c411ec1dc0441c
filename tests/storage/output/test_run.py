from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.records import DATA, DEAD
from pipeline.report.run_summary import RunSummary
from pipeline.storage import read_dead, read_run
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard, finish_window
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.plan import plan_input
from pipeline.storage.output.run import RunFolder, encode_schema
from tests.rows import DATA_ROW
from tests.storage import memory_url, user_error, write_file

PASSED = pa.schema([("source", pa.string())])


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else memory_url()


def start_run(url: str) -> MarkerStore:
    """A run that has written only its run.json."""
    schemas = {"data": encode_schema(pa.schema([*DATA, *PASSED])), "dead": encode_schema(DEAD)}
    RunFolder(url).write_json("run.json", {"schemas": schemas})
    return MarkerStore(url)


def commit(store: MarkerStore, name: str, ids: list[str]) -> None:
    schema = pa.schema([*DATA, *PASSED])
    rows = [{"id": identity, "source": identity, **DATA_ROW} for identity in ids]
    data = pa.Table.from_pylist(rows, schema)
    dead = DEAD.empty_table()
    commit_shard(
        store, Shard(name, None, None, np.arange(len(ids)), np.array([], np.int64), count_rows(data, dead)), data, dead
    )


def ids_of(url: str) -> list[str]:
    return sorted(read_run(url).to_table()["id"].to_pylist())


def test_a_run_that_has_committed_nothing_is_an_empty_data_set_of_its_schema(url: str) -> None:
    start_run(url)
    assert read_run(url).to_table().schema.names == [*DATA.names, "source"]
    assert read_run(url).count_rows() == read_dead(url).count_rows() == 0
    assert read_dead(url).schema.names == DEAD.names


def test_only_committed_rows_are_read_before_and_after_the_window_is_finished(url: str) -> None:
    store = start_run(url)
    commit(store, "w000000-a-0", ["a", "b"])
    commit(store, "w000001-a-0", ["c"])
    store.fs.pipe_file(f"{store.root}/data/w000002-a-0.parquet", b"half a file")
    assert ids_of(url) == ["a", "b", "c"]
    finish_window(store, 0, 2)
    assert ids_of(url) == ["a", "b", "c"]


def test_passed_through_columns_are_read(url: str) -> None:
    commit(start_run(url), "w000000-a-0", ["a"])
    assert read_run(url).to_table(columns=["id", "source"]).to_pylist() == [{"id": "a", "source": "a"}]


@pytest.mark.parametrize("read", [read_run, read_dead, RunSummary.read])
@pytest.mark.parametrize("content", [None, b"{}", b"[]", b"not json", b'{"schemas": {"data": 1}}'])
def test_a_folder_that_is_no_run_is_refused(url: str, content: bytes | None, read: object) -> None:
    if content is not None:
        write_file(f"{url}/run.json", content)
    with user_error("run", url):
        read(url)  # type: ignore[operator]


def test_a_plan_is_saved_and_loaded_whole(url: str) -> None:
    source = memory_url()
    write_file(f"{source}/a.jsonl", b'{"id":"a","prompt":"p","x":1}\n{"id":"a","prompt":"q","y":[{"z":null}]}\nbad\n')
    write_file(f"{source}/b.csv", b"id,prompt,m\nb,p,1\n")
    plan = plan_input(source, 2, Columns())
    folder = RunFolder(url)
    assert folder.load_plan([]) is None
    folder.save_plan(plan)
    loaded = RunFolder(url).load_plan(plan.files)
    assert loaded == plan
    assert loaded is not None
    assert [list(loaded.splits(w)) for w in range(loaded.windows)] == [list(plan.splits(w)) for w in range(2)]
    assert loaded.duplicates_of(0) == plan.duplicates_of(0) == {1: (0, 1)}


def test_files_of_the_folder_are_written_whole_and_read_back(url: str) -> None:
    folder = RunFolder(url)
    assert folder.read("notes/a.txt") is None
    assert folder.read_json("a.json") is None
    folder.write("notes/a.txt", b"one")
    folder.write("notes/a.txt", b"two")
    folder.write_json("a.json", {"a": [1, None]})
    assert (folder.read("notes/a.txt"), folder.read_json("a.json")) == (b"two", {"a": [1, None]})
