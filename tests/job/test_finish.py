"""Windows that are finished in Ray tasks while the stream runs."""

from pathlib import Path

import pytest

from pipeline.job.finish import WindowFinisher
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.input.columns import Columns
from pipeline.storage.input.plan import InputPlan, plan_input
from pipeline.storage.store.objects import StoreError
from tests.storage.commit.committing import write_shard

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def plan(tmp_path: Path) -> InputPlan:
    """Of three windows of four rows."""
    (tmp_path / "a.jsonl").write_text("".join(f'{{"prompt": "{row}"}}\n' for row in range(12)))
    return plan_input(str(tmp_path / "a.jsonl"), 4, Columns())


def test_windows_are_finished_side_by_side_and_those_that_lack_rows_are_not(tmp_path: Path, plan: InputPlan) -> None:
    store, log = MarkerStore(str(tmp_path / "out"), "today"), list[str]()
    finisher = WindowFinisher(store, plan, 1_000_000, log.append)
    for window in range(3):
        write_shard(store, "a-0", [0, 1], window)
        write_shard(store, "b-0", [1, 2] if window == 1 else [2, 3], window)
        finisher.start(window)
    finisher.wait()
    assert finisher.ended == set(store.finished_markers()) == {0, 2}
    assert sorted(log) == ["window 1/3: 3 committed, 1 dead", "window 3/3: 3 committed, 1 dead"]
    write_shard(store, "c-0", [3], 1)
    finisher.start(1)
    finisher.wait()
    assert finisher.ended == {0, 1, 2}
    assert store.newest_marker(1)[1].counts.data == 3


def test_what_the_store_says_is_raised_as_it_is(tmp_path: Path, plan: InputPlan) -> None:
    """An error of Ray would pass for the loss of the cluster."""
    store = MarkerStore(str(tmp_path / "out"), "today")
    write_shard(store, "a-0", [0, 1, 2, 3], 0)
    (tmp_path / "out" / "_commits" / "window-000000-today.json").mkdir()
    finisher = WindowFinisher(store, plan, 0, print)
    finisher.start(0)
    with pytest.raises(StoreError, match="IsADirectoryError"):
        finisher.wait()
    finisher.wait()
    assert finisher.ended == set()
