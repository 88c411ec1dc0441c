"""Commands that find what others left at their ends: killed before `run.json`, taken over, begun anew. Without Ray."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.cluster.resources import Pools
from pipeline.errors import UserError
from pipeline.job import preflight as prepare_module
from pipeline.job import retry_dead as retry_module
from pipeline.job.generate import GenerateJob
from pipeline.job.preflight import ModelChecks
from pipeline.job.retry_dead import RetryJob
from pipeline.job.session import open_session
from pipeline.job.stop import StopKind, StoppedError
from pipeline.records import DEAD
from pipeline.settings import JobSettings
from pipeline.stages.commit import Committed
from pipeline.stages.dataset import Stream
from pipeline.stages.read import Missing
from pipeline.storage.commit.counts import Counts, count_rows
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.orphans import remove_orphans, sweep_finished_windows
from pipeline.storage.commit.replace import RetryFilter, replace_dead_letters
from pipeline.storage.commit.window import commit_shard, finish_window
from pipeline.storage.output.dataset_card import CARD
from pipeline.storage.output.run import RUN, RunFolder
from pipeline.storage.store.objects import StoreError
from pipeline.telemetry.incidents import Incidents
from tests.stages import default_job, tiny_pools

ROWS = 4
PARTS = {"model": "m", "bank": "b", "router": "r", "tokenizer": "t"}
DEATH = {"stage": "route", "phase": "run", "error_type": "ActorDiedError", "message": "a death", "times": 2}
STAYED = {"devices": {"generate_actors": 7, "device_seconds": 60.0}, "timings": {"seconds": 9}}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSettings:
    """Of a job whose parts are taken for good."""
    monkeypatch.setattr(prepare_module, "check_models", lambda settings: ModelChecks(1000, PARTS, [], settings.routing))
    (tmp_path / "in.jsonl").write_text("".join(f'{{"id": "{i}", "prompt": "red{i}"}}\n' for i in range(ROWS)))
    url, out = str(tmp_path / "in.jsonl"), str(tmp_path / "out")
    return default_job(url, out)


def letters(rows: list[int]) -> pa.Table:
    values: dict[str, Any] = {"id": [str(r) for r in rows], "stage": ["generate"] * len(rows), "row": rows}
    values |= {"error_type": ["Error"] * len(rows)}
    return pa.table([pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in DEAD], schema=DEAD)


def answers(settings: JobSettings, rows: list[int]) -> pa.Table:
    values: dict[str, Any] = {"id": [str(r) for r in rows], "prompt_tokens": [1] * len(rows)}
    values |= {"finish_reason": ["stop"] * len(rows), "completion_tokens": [2] * len(rows)}
    values |= {"fallback": [False] * len(rows), "last_assistant": [False] * len(rows), "mixture": ["a:1.0"] * len(rows)}
    schema = GenerateJob(settings).prepare(new_run=True).schema.data
    return pa.table([pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in schema], schema=schema)


def commit(settings: JobSettings, markers: MarkerStore, name: str, answered: list[int], dead: list[int]) -> None:
    tables = answers(settings, answered), letters(dead)
    places = np.array(answered, np.int64), np.array(dead, np.int64)
    commit_shard(markers, Shard(f"{markers.shard_prefix(0)}{name}", None, None, *places, count_rows(*tables)), *tables)


def markers_of(settings: JobSettings) -> MarkerStore:
    return MarkerStore(settings.output, "today")


def begun(settings: JobSettings, state: str, dead: list[int]) -> RunFolder:
    """The output of a run of one window, finished; ``state``: of `run.json`."""
    prepared, markers, folder = (
        GenerateJob(settings).prepare(new_run=True),
        markers_of(settings),
        RunFolder(settings.output),
    )
    commit(settings, markers, "a-0", [row for row in range(ROWS) if row not in dead], dead)
    counts = asdict(finish_window(markers, 0, ROWS).counts)
    sweep_finished_windows(markers)
    remove_orphans(markers)
    told = {
        "state": state,
        "run": "today",
        "guard": prepared.guard,
        "schemas": {},
        "counts": {"records": ROWS} | counts,
    }
    folder.save_plan(prepared.plan)
    folder.write_json(RUN, told | STAYED | {"incidents": [DEATH]})
    folder.write(CARD, b"card")
    return folder


def no_ray() -> Pools:
    raise AssertionError("there is nothing to do for Ray")


def retrying(
    settings: JobSettings, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[RetryJob], None] = lambda job: None
) -> RetryJob:
    """A command whose stream answers all rows in one shard."""
    job = RetryJob(settings, RetryFilter(), lambda line: None)

    def stream(self: Stream, missing: Missing, shard_records: int, alone: bool = False) -> Iterator[Committed]:
        for window, rows in missing.items():
            assert rows is not None
            commit(settings, self.markers, "b-0", rows.tolist(), [])
            meanwhile(job)
            yield Committed(window, Counts(data=len(rows)), "")

    monkeypatch.setattr(Stream, "run", stream)
    monkeypatch.setattr(Incidents, "with_actor", staticmethod(Incidents))
    return job


def test_a_run_whose_end_alone_was_missing_keeps_its_devices_and_incidents(settings: JobSettings) -> None:
    begun(settings, "stopped", [])
    job = GenerateJob(settings, lambda line: None)
    assert job.run(no_ray).ok
    told = job.folder.read_json(RUN)
    assert told is not None
    assert told["state"] == "finished"
    assert {key: told[key] for key in STAYED} == STAYED
    assert told["incidents"] == [DEATH]


def test_dead_letters_are_answered_and_counted(settings: JobSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(settings, "finished", [1, 3])
    cards: list[bytes | None] = []
    job = retrying(settings, monkeypatch, lambda job: cards.append(job.folder.read(CARD)))
    result = job.run(tiny_pools)
    assert (result.retried, result.answered, result.dead) == (2, 2, 0)
    assert cards == [None], "a reader is told that files may lie there that no marker names"
    told = job.folder.read_json(RUN)
    assert told is not None
    assert (told["counts"]["data"], told["counts"]["dead"], told["retries"][0]["answered"]) == (4, 0, 2)


def test_what_a_killed_command_left_undone_is_done_by_the_next(
    settings: JobSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(settings, "finished", [1, 3])
    job = retrying(settings, monkeypatch)
    monkeypatch.setattr(retry_module, "_write_counts", lambda *args: 1 / 0)  # killed behind the last window
    with pytest.raises(ZeroDivisionError):
        job.run(tiny_pools)
    monkeypatch.undo()
    monkeypatch.setattr(prepare_module, "check_models", lambda settings: ModelChecks(1000, PARTS, [], settings.routing))
    markers = markers_of(settings).with_session()
    late = markers.write_table("data", f"{markers.shard_prefix(0)}late", answers(settings, [1]))
    assert late is not None
    again = RetryJob(settings, RetryFilter(), lambda line: None)
    result = again.run(no_ray)
    assert (result.retried, result.answered, result.dead) == (0, 0, 0)
    told = again.folder.read_json(RUN)
    assert told is not None
    assert (told["counts"]["data"], told["counts"]["dead"]) == (4, 0)
    assert not markers.fs.exists(markers.path(late))


@pytest.mark.parametrize("state", ["running", "stopped", "incomplete"])
def test_a_run_that_has_not_ended_is_refused(settings: JobSettings, state: str) -> None:
    begun(settings, state, [1])
    with pytest.raises(UserError, match="is not finished; finish it first"):
        RetryJob(settings, RetryFilter(), lambda line: None).run(no_ray)


def take_over(job: RetryJob) -> None:
    """Another command takes the lease."""
    number = max(int(path.stem) for path in Path(job.settings.output, "_lease").glob("*.json"))
    Path(job.settings.output, "_lease", f"{number + 1:06d}.json").write_text("{}")


def test_a_command_that_was_taken_over_amends_nothing(settings: JobSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(settings, "finished", [1, 3])
    job = retrying(settings, monkeypatch, take_over)
    told = job.folder.read_json(RUN)
    with pytest.raises(StoppedError, match="another driver took the output over") as caught:
        job.run(tiny_pools)
    assert caught.value.reason.kind is StopKind.LEASE_LOST
    assert job.folder.read_json(RUN) == told
    assert markers_of(settings).finished_markers() == {0: "window-000000-today.json"}


def test_a_command_that_is_taken_over_behind_its_last_window_writes_no_counts(
    settings: JobSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(settings, "finished", [1, 3])
    job = retrying(settings, monkeypatch)
    told, amend = job.folder.read_json(RUN), replace_dead_letters

    def amend_and_lose(*args: Any) -> Any:
        found = amend(*args)
        take_over(job)
        return found

    monkeypatch.setattr(retry_module, "replace_dead_letters", amend_and_lose)
    with pytest.raises(StoppedError, match="another driver took the output over") as caught:
        job.run(tiny_pools)
    assert caught.value.reason.kind is StopKind.LEASE_LOST
    assert job.folder.read_json(RUN) == told


def test_a_run_that_is_begun_anew_as_the_lease_is_taken_is_left_alone(
    settings: JobSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(settings, "finished", [1])
    told = folder.read_json(RUN)
    assert told is not None

    def begun_anew(*args: Any) -> Any:
        folder.write_json(RUN, told | {"run": "other"})
        return open_session(*args)

    monkeypatch.setattr(retry_module, "open_session", begun_anew)
    with pytest.raises(UserError, match="was replaced by a new run meanwhile"):
        retrying(settings, monkeypatch).run(no_ray)


def test_an_answer_without_a_letter_is_refused(settings: JobSettings) -> None:
    begun(settings, "finished", [1])
    markers = markers_of(settings).with_session()
    commit(settings, markers, "b-0", [1, 2], [])
    marker, files = markers.newest_marker(0)
    with pytest.raises(StoreError, match="its dead letters changed"):
        replace_dead_letters(markers, 0, marker, 0, np.array([1, 2]))
    assert markers.newest_marker(0) == (marker, files)


def test_too_many_windows_are_refused(settings: JobSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "MAX_WINDOWS", 3)
    settings = JobSettings(**vars(settings) | {"window_records": 1})
    with pytest.raises(UserError, match=r"window\.records=1 cuts the input into 4 windows; 3 at most"):
        GenerateJob(settings).prepare()
