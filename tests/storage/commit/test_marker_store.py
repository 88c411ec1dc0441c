import pickle
from collections import Counter
from dataclasses import FrozenInstanceError
from functools import reduce
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.commit.counts import Counts
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import WindowFiles, shard_prefix, window_of
from pipeline.storage.commit.orphans import remove_orphans, sweep_finished_windows
from pipeline.storage.commit.replace import replace_window
from pipeline.storage.commit.window import finish_window
from pipeline.storage.store.objects import list_names
from tests.storage import memory_url, user_error
from tests.storage.commit.committing import (
    WINDOW,
    KilledError,
    crash_at,
    data_table,
    is_dead,
    tally_of,
    visible,
    visible_rows,
    write_shard,
)


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MarkerStore:
    return MarkerStore(str(tmp_path / "out") if request.param == "local" else memory_url())


def finished_windows(store: MarkerStore) -> dict[int, WindowFiles]:
    markers = store.finished_markers()
    return dict(zip(markers, store.read_windows(markers.values()), strict=True))


def test_a_new_output_has_no_files(store: MarkerStore) -> None:
    assert (store.committed_files("data"), store.committed_files("dead")) == ([], [])
    assert (list(store.shards(WINDOW)), store.finished_markers()) == ([], {})


def test_committed_rows_are_visible_in_file_order(store: MarkerStore) -> None:
    write_shard(store, "a-0", [5, 3, 4, 1])
    assert visible(store, "data") == ["5", "4", "1"]
    assert visible(store, "dead") == ["3"]


def test_a_shard_without_rows_of_a_kind_has_no_file_of_it(store: MarkerStore) -> None:
    shard = write_shard(store, "a-0", [0, 1])
    assert (shard.dead, store.committed_files("dead")) == (None, [])
    shard = write_shard(store, "a-1", [3])
    assert (shard.data, len(store.committed_files("data"))) == (None, 1)


def test_a_marker_keeps_names_rows_and_counts(store: MarkerStore) -> None:
    written = write_shard(store, "a-0", [5, 3, 4, 1, 999_998])
    (read,) = store.shards(WINDOW)
    assert (read.name, read.data, read.dead, read.counts) == (written.name, written.data, written.dead, written.counts)
    assert read.rows.tolist() == [5, 4, 1, 999_998, 3]
    assert window_of(read.name) == WINDOW


@pytest.mark.parametrize("write", [0, 1, 2])
def test_nothing_of_a_shard_is_visible_before_its_marker(store: MarkerStore, write: int) -> None:
    with crash_at(write), pytest.raises(KilledError):
        write_shard(store, "a-0", [0, 3])
    assert visible_rows(store) == []
    assert list(store.shards(WINDOW)) == []


def test_committing_a_shard_again_changes_nothing(store: MarkerStore) -> None:
    first = write_shard(store, "a-0", [0, 1, 3])
    before = {path: store.fs.cat_file(path) for path in store.fs.find(store.root)}
    again = write_shard(store, "a-0", [2, 1])
    assert (again.data, again.dead, again.rows.tolist()) == (first.data, first.dead, first.rows.tolist())
    assert {path: store.fs.cat_file(path) for path in store.fs.find(store.root)} == before


def test_shards_of_another_window_are_apart(store: MarkerStore) -> None:
    write_shard(store, "a-0", [0], window=1)
    write_shard(store, "a-0", [0], window=10)
    assert [s.name for s in store.shards(1)] == ["w000001-a-0"]
    finish_window(store, 1, 1)
    assert list(store.finished_markers()) == [1]
    assert len(store.committed_files("data")) == 2


@pytest.mark.long
@given(st.lists(st.integers(0, 40), unique=True, min_size=1), st.lists(st.none() | st.integers(0, 3), max_size=5))
def test_after_any_crashes_a_retry_leaves_each_row_once(rows: list[int], crashes: list[int | None]) -> None:
    store = MarkerStore(memory_url())
    half = len(rows) // 2
    for crash in [*crashes, None]:
        try:
            with crash_at(crash):
                for number, part in enumerate((rows[:half], rows[half:])):
                    write_shard(store, f"a-{number}", part)
        except KilledError:
            assert set(visible_rows(store)) <= set(rows)
    assert visible_rows(store) == sorted(rows)
    finish_window(store, WINDOW, len(rows))
    assert visible_rows(store) == sorted(rows)


def test_a_shard_that_repeats_rows_is_hidden_until_the_window_is_finished(store: MarkerStore) -> None:
    write_shard(store, "a-0", [0, 1, 3])
    write_shard(store, "b-0", [1, 2, 3, 7])
    assert visible_rows(store) == [0, 1, 3]
    finish_window(store, WINDOW, 5)
    assert visible_rows(store) == [0, 1, 2, 3, 7]


def test_a_row_answered_twice_keeps_its_first_answer(store: MarkerStore) -> None:
    write_shard(store, "a-0", [1, 0])
    write_shard(store, "b-0", [2, 1])
    finish_window(store, WINDOW, 3)
    assert sorted(visible(store, "data", "output")) == ["a-0:0", "a-0:1", "b-0:2"]


def test_a_shard_with_only_repeated_rows_is_dropped(store: MarkerStore) -> None:
    write_shard(store, "a-0", [0, 1, 3])
    write_shard(store, "b-0", [3, 1])
    files = finish_window(store, WINDOW, 3)
    assert (len(files.data), len(files.dead), visible_rows(store)) == (1, 1, [0, 1, 3])


def test_a_window_marker_counts_what_its_files_hold(store: MarkerStore) -> None:
    write_shard(store, "a-0", [0, 1, 3, 5])
    write_shard(store, "b-0", [5, 6, 7, 3])
    files = finish_window(store, WINDOW, 6)
    assert files.counts == tally_of([0, 1, 3, 5, 6, 7])
    assert finished_windows(store) == {WINDOW: files}


def test_a_shard_that_comes_after_its_window_is_finished_changes_nothing(store: MarkerStore) -> None:
    write_shard(store, "b-0", [0, 1])
    files = finish_window(store, WINDOW, 2)
    write_shard(store, "a-0", [0, 1, 2, 3])
    write_shard(store, "b-0", [2])
    assert visible_rows(store) == [0, 1]
    assert finished_windows(store) == {WINDOW: files}


@pytest.mark.parametrize("write", [0, 1, 2])
def test_a_window_whose_end_was_cut_off_is_finished_by_the_next_try(store: MarkerStore, write: int) -> None:
    write_shard(store, "a-0", [0, 1, 3])
    write_shard(store, "b-0", [1, 2, 3, 7])
    with crash_at(write), pytest.raises(KilledError):
        finish_window(store, WINDOW, 5)
    assert visible_rows(store) == [0, 1, 3]
    write_shard(store, "a-1", [4])
    finish_window(store, WINDOW, 6)
    assert visible_rows(store) == [0, 1, 2, 3, 4, 7]


def test_no_marker_is_written_over_a_part_of_a_window(store: MarkerStore) -> None:
    write_shard(store, "a-0", [0, 1, 3])
    with pytest.raises(FileNotFoundError):  # as if the store listed one shard of two
        finish_window(store, WINDOW, 4)
    assert (visible_rows(store), store.finished_markers()) == ([0, 1, 3], {})
    files = finish_window(store, WINDOW, 3)
    assert finish_window(MarkerStore(store.url), WINDOW, 3) == files, "finished by another driver, and swept"


def test_files_of_other_tools_are_no_markers(store: MarkerStore) -> None:
    write_shard(store, "a-0", [0])
    for name in ("README.txt", "window-.tmp", ".w000003-b-0.json.part", f"{shard_prefix(WINDOW)}b-0.json.tmp"):
        store.fs.pipe_file(f"{store.root}/_commits/{name}", b"x")
    store.fs.pipe_file(f"{store.root}/data/half.parquet", b"x")
    assert (visible_rows(store), list(store.finished_markers())) == ([0], [])


def test_a_store_can_be_sent_to_another_process(store: MarkerStore) -> None:
    store = MarkerStore(store.url, "today").with_session()
    sent: MarkerStore = pickle.loads(pickle.dumps(store))
    assert sent == store
    assert len(pickle.dumps(store)) < 500, "more than its URL, run and session"
    write_shard(sent, "a-0", [0])
    assert [shard.rows.tolist() for shard in store.shards(WINDOW)] == [[0]]
    assert list(store.with_session().shards(WINDOW)) == []
    assert visible_rows(store) == [0]


def test_the_run_of_a_store_cannot_be_changed(store: MarkerStore) -> None:
    with pytest.raises(FrozenInstanceError):
        store.run = "today"  # type: ignore[misc]
    assert (MarkerStore(store.url, "today").run, store.run) == ("today", "")


@given(st.lists(st.lists(st.integers(0, 30), unique=True), max_size=5))
def test_tallies_add_up(parts: list[list[int]]) -> None:
    added = reduce(lambda a, b: a + b, map(tally_of, parts), Counts())
    rows = [row for part in parts for row in part]
    answered = [r for r in rows if not is_dead(r)]
    assert (added.data, added.dead) == (len(answered), len(rows) - len(answered))
    assert (added.prompt_tokens, added.completion_tokens) == (sum(answered), 2 * sum(answered))
    assert added.fallback == sum(r % 5 == 0 for r in answered)
    assert added.mixtures == Counter(f"m{r % 3}:1.0" for r in answered)
    assert added.finish_reasons == Counter("stop" if r % 2 else "length" for r in answered)
    assert added.errors == Counter(f"Error{r % 2}" for r in rows if is_dead(r))


def test_what_a_discarded_run_does_late_changes_nothing(store: MarkerStore) -> None:
    """Neither its writers nor its driver, which finishes a window of the same number and sweeps it at the end."""
    late, store = MarkerStore(store.url, "yesterday"), MarkerStore(store.url, "today")
    write_shard(late, "b-0", [0, 1, 2])
    assert list(store.shards(WINDOW)) == []
    assert store.committed_files("data") == []
    own = write_shard(store, "a-0", [0, 1, 2])
    finish_window(late, WINDOW, 3)
    assert store.finished_markers() == {}
    files = finish_window(store, WINDOW, 3)
    assert files.data == [own.data]
    sweep_finished_windows(late)
    write_shard(late, "c-0", [0, 1, 2])
    assert finished_windows(store) == {WINDOW: files}
    assert visible_rows(store) == [0, 1, 2]
    sweep_finished_windows(store)
    remove_orphans(store)
    assert list_names(store.fs, store.path("data")) == [files.data[0].removeprefix("data/")]
    assert list_names(store.fs, store.path("_commits")) == [f"window-{WINDOW:06d}-today.json"]


@pytest.mark.parametrize("run", ["../../x", "a/b", "A", "x" * 40, "a b"])
def test_what_is_no_run_s_id_does_not_become_part_of_a_name(store: MarkerStore, run: str) -> None:
    with user_error("which is not a run id"):
        MarkerStore(store.url, run)


def test_what_a_finished_window_left_stays_for_readers_until_the_end_of_the_job(store: MarkerStore) -> None:
    write_shard(store, "a-0", [0, 1])
    write_shard(store, "b-0", [1, 2, 3])
    opened = {kind: store.committed_files(kind) for kind in ("data", "dead")}
    files = finish_window(store, WINDOW, 4, 1_000_000)
    assert [len(files.data), len(files.dead)] == [1, 1]
    assert all(store.fs.exists(path) for paths in opened.values() for path in paths)
    assert visible_rows(store) == [0, 1, 2, 3]
    assert finish_window(store, WINDOW, 4, 1_000_000) == files, "another driver finishes it too"
    assert sweep_finished_windows(store) == 1
    assert sweep_finished_windows(store) == 0
    assert [store.path(path) for path in files.data] == store.committed_files("data")
    assert list_names(store.fs, store.path("data")) == [path.removeprefix("data/") for path in files.data]
    assert list_names(store.fs, store.path("_commits")) == [f"window-{WINDOW:06d}.json"]


def test_windows_with_shards_are_those_of_the_run_and_session(store: MarkerStore) -> None:
    other, store = MarkerStore(store.url, "yesterday"), MarkerStore(store.url, "today")
    session = store.with_session()
    write_shard(other, "a-0", [0], 1)
    write_shard(store, "a-0", [0], 2)
    write_shard(session, "a-0", [0], 4)
    assert other.windows_with_shards() == {1}
    assert session.windows_with_shards() == {4}
    assert store.windows_with_shards() == {2, 4}


def test_a_driver_that_slept_in_its_sweep_removes_nothing_that_is_newer(store: MarkerStore) -> None:
    """Meanwhile another one has taken over, and given the window a new marker with files of its own."""
    write_shard(store, "a-0", [0, 1, 2])
    finish_window(store, WINDOW, 3)
    other = MarkerStore(store.url)

    def check_and_sleep() -> None:
        name, before = other.newest_marker(WINDOW)
        amended = other.write_table("data", f"{shard_prefix(WINDOW)}retry", data_table([4]))
        assert amended is not None
        replace_window(other, WINDOW, name, WindowFiles([*before.data, amended], [], Counts(data=4)))

    sweep_finished_windows(store, check_and_sleep)
    assert visible_rows(other) == [0, 1, 2, 4]
    assert list_names(store.fs, store.path("_commits")) == [f"window-{WINDOW:06d}-001.json"]


def test_a_sweep_of_who_lost_the_lease_removes_nothing(store: MarkerStore) -> None:
    write_shard(store, "a-0", [0, 1, 2])
    write_shard(store, "b-0", [0])
    finish_window(store, WINDOW, 3)
    before = store.list_window(WINDOW)

    def check() -> None:
        raise RuntimeError("taken over")

    with pytest.raises(RuntimeError, match="taken over"):
        sweep_finished_windows(store, check)
    assert store.list_window(WINDOW) == before
