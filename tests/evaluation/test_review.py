"""The rows of a run that a review shows: the least certain ones of each mixture, or random ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.evaluation.review import certainty, choose_rows, quotas
from pipeline.records import DATA, DEAD, REQUESTED
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.window import commit_shard
from pipeline.storage.output.run import RunFolder, encode_schema

SCHEMA = pa.schema([*DATA, REQUESTED.field("choice_margin"), ("task", pa.string())])


def make_run(url: str, rows: list[dict[str, Any]]) -> str:
    """A run of two shards with these rows; other values are the same in all."""
    same = {
        "output": "o",
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "finish_reason": "stop",
        "fallback": False,
        "last_assistant": False,
    }
    RunFolder(url).write_json("run.json", {"schemas": {"data": encode_schema(SCHEMA), "dead": encode_schema(DEAD)}})
    for number, part in enumerate((rows[::2], rows[1::2])):
        data, dead = pa.Table.from_pylist([same | row for row in part], SCHEMA), DEAD.empty_table()
        nothing = np.array([], np.int64)
        name = f"w00000{number}-a-0"
        shard = Shard(name, None, None, np.arange(len(part)), nothing, count_rows(data, dead))
        commit_shard(MarkerStore(url), shard, data, dead)
    return url


def row(name: str, mixture: str, confidence: float | None, **values: Any) -> dict[str, Any]:
    return {"id": name, "mixture": mixture, "route_confidence": confidence, **values}


def test_the_least_certain_rows_of_each_mixture_come_first(tmp_path: Path) -> None:
    rows = [row(f"a{n}", "a:1.0", 0.5 + n / 100) for n in range(30)] + [row(f"b{n}", "b:1.0", 0.9) for n in range(10)]
    found = choose_rows(make_run(str(tmp_path), rows), 8)
    assert [one["id"] for one in found.rows] == ["a0", "a1", "a2", "a3", "a4", "a5", "b0", "b1"]
    assert (found.total, found.mixtures) == (40, 2)
    assert found.rows[0]["certainty"] == pytest.approx(0.5)


def test_random_rows_depend_on_the_seed_and_the_ids_alone(tmp_path: Path) -> None:
    rows = [row(f"{n}", "a:1.0", n / 100) for n in range(100)]
    run, other = make_run(str(tmp_path / "a"), rows), make_run(str(tmp_path / "b"), rows[::-1])
    chosen = [[one["id"] for one in choose_rows(url, 20, seed).rows] for url, seed in ((run, 1), (other, 1), (run, 2))]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]
    assert np.mean([int(name) for name in chosen[0]]) > 25, "not the least certain ones"


def test_certainty_is_that_of_the_route_times_that_of_the_answer() -> None:
    table = pa.table(
        {
            "route_confidence": pa.array([0.5, 0.5, None, None], pa.float32()),
            "answer_logprob": pa.array([np.log(0.5), np.log(0.5), np.log(0.5), None], pa.float32()),
            "choice_margin": pa.array([None, 0.1, None, None], pa.float32()),
        }
    )
    assert certainty(table).tolist() == pytest.approx([0.25, 0.05, 0.5, 1.0])
    assert certainty(table.select(["route_confidence"])).tolist() == pytest.approx([0.5, 0.5, 1.0, 1.0])


def test_a_row_has_the_task_of_the_run_or_its_likeliest_adapter(tmp_path: Path) -> None:
    rows = [row("x", "a:0.25+b:0.75", 0.5), row("y", "a:1.0", 0.6, task="own"), row("z", "base", 0.7)]
    found = choose_rows(make_run(str(tmp_path), rows), 3).rows
    assert {one["id"]: (one["task"], one["answer"]) for one in found} == {
        "x": ("b", None),
        "y": ("own", None),
        "z": ("", None),
    }


def test_a_run_without_answers_has_nothing_to_review(tmp_path: Path) -> None:
    assert choose_rows(make_run(str(tmp_path), []), 5).rows == []
    with pytest.raises(UserError, match=r"there is no run\.json"):
        choose_rows(str(tmp_path / "none"), 5)


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 100))
def test_quotas_follow_the_sizes_and_are_used_up(sizes: dict[str, int], count: int) -> None:
    found = quotas(sizes, count)
    assert sum(found.values()) == min(count, sum(sizes.values()))
    assert all(0 <= found[name] <= size for name, size in sizes.items())
    assert all(found[a] >= found[b] for a in sizes for b in sizes if sizes[a] > sizes[b])
