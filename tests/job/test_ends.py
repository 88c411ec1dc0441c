"""Commands that find what others left at their ends: killed before `run.json`, taken over, begun anew. Without Ray."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.cluster.resources import Pools
from pipeline.engine import Sampling
from pipeline.errors import UserError
from pipeline.job import preflight as prepare_module
from pipeline.job import retry_dead as retry_module
from pipeline.job.generate import GenerateJob
from pipeline.job.retry_dead import RetryJob
from pipeline.job.stop import StoppedError
from pipeline.job.window import WindowJob
from pipeline.records import DEAD
from pipeline.settings import JobSettings, ModelRef
from pipeline.stages.dataset import WindowRun
from pipeline.storage.commit.counts import count_rows
from pipeline.storage.commit.markers import Shard
from pipeline.storage.commit.retry import RetryFilter, amend_window
from pipeline.storage.output.dataset_card import CARD
from pipeline.storage.output.run import RUN
from pipeline.storage.store.objects import StoreError
from pipeline.telemetry.incidents import Incidents

ROWS = 4
STAYED = {"devices": {"generate_actors": 7, "device_seconds": 60.0}, "timings": {"seconds": 9}}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobSettings:
    """Of a job whose parts are taken for good."""
    parts = {"model": "m", "bank": "b", "router": "r", "tokenizer": "t"}
    monkeypatch.setattr(prepare_module, "check_models", lambda settings: (1000, parts))
    (tmp_path / "in.jsonl").write_text("".join(f'{{"id": "{i}", "prompt": "red{i}"}}\n' for i in range(ROWS)))
    url, out = str(tmp_path / "in.jsonl"), str(tmp_path / "out")
    return JobSettings(url, out, ModelRef("model", "fp32", "raw"), "bank", "router", sampling=Sampling())


def letters(rows: list[int]) -> pa.Table:
    values: dict[str, Any] = {"id": [str(r) for r in rows], "stage": ["generate"] * len(rows), "row": rows}
    values |= {"error_type": ["Error"] * len(rows)}
    return pa.table([pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in DEAD], schema=DEAD)


def answers(job: GenerateJob, rows: list[int]) -> pa.Table:
    values: dict[str, Any] = {"id": [str(r) for r in rows], "prompt_tokens": [1] * len(rows)}
    values |= {"finish_reason": ["stop"] * len(rows), "completion_tokens": [2] * len(rows)}
    values |= {"fallback": [False] * len(rows), "mixture": ["a:1.0"] * len(rows)}
    schema = job.shape(job.prepare()).schema
    return pa.table([pa.array(values.get(f.name, [None] * len(rows)), f.type) for f in schema], schema=schema)


def commit(job: GenerateJob, name: str, answered: list[int], dead: list[int]) -> None:
    tables = answers(job, answered), letters(dead)
    places = np.array(answered, np.int64), np.array(dead, np.int64)
    job.log.commit(Shard(f"{job.log.prefix(0)}{name}", None, None, *places, count_rows(*tables)), *tables)


def begun(settings: JobSettings, state: str, dead: list[int]) -> GenerateJob:
    """A run of one window, finished; ``state``: of `run.json`."""
    job = GenerateJob(settings, lambda line: None)
    prepared = job.prepare(new_run=True)
    job.log.run = "today"
    commit(job, "a-0", [row for row in range(ROWS) if row not in dead], dead)
    counts = asdict(job.log.finish_window(0, ROWS).counts)
    told = {
        "state": state,
        "run": "today",
        "guard": prepared.guard,
        "schemas": {},
        "counts": {"records": ROWS} | counts,
    }
    job.folder.save_plan(prepared.plan)
    job.folder.write_json(RUN, told | STAYED | {"incidents": [{"what": "a death", "times": 2}]})
    job.folder.write(CARD, b"card")
    return job


def no_ray() -> Pools:
    raise AssertionError("there is nothing to do for Ray")


def retrying(
    settings: JobSettings, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[RetryJob], None] = lambda job: None
) -> RetryJob:
    """A command whose rounds answer all rows at once."""
    job = RetryJob(settings, RetryFilter(), lambda line: None)

    def rounds(self: WindowJob, run: WindowRun) -> np.ndarray:
        commit(job, "b-0", run.wanted.tolist(), [])
        meanwhile(job)
        return np.empty(0, np.int64)

    monkeypatch.setattr(WindowJob, "rounds", rounds)
    monkeypatch.setattr(Incidents, "listening", staticmethod(Incidents))
    return job


def test_a_run_whose_end_alone_was_missing_keeps_its_devices_and_incidents(settings: JobSettings) -> None:
    begun(settings, "stopped", [])
    job = GenerateJob(settings, lambda line: None)
    assert job.run(no_ray).ok
    told = job.folder.read_json(RUN)
    assert told is not None
    assert told["state"] == "finished"
    assert {key: told[key] for key in STAYED} == STAYED
    assert told["incidents"] == [{"what": "a death", "times": 2}]


def test_dead_letters_are_answered_and_counted(settings: JobSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(settings, "finished", [1, 3])
    cards: list[bytes | None] = []
    job = retrying(settings, monkeypatch, lambda job: cards.append(job.folder.read(CARD)))
    result = job.retry(Pools)
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
    monkeypatch.setattr(RetryJob, "_done", lambda self, *args: 1 / 0)  # killed behind the last window
    with pytest.raises(ZeroDivisionError):
        job.retry(Pools)
    monkeypatch.undo()
    late = job.log.write_table("data", f"{job.log.prefix(0)}late", answers(job, [1]))
    assert late is not None
    monkeypatch.setattr(prepare_module, "check_models", lambda settings: (1000, job.prepare().fingerprints))
    again = RetryJob(settings, RetryFilter(), lambda line: None)
    result = again.retry(no_ray)
    assert (result.retried, result.answered, result.dead) == (0, 0, 0)
    told = again.folder.read_json(RUN)
    assert told is not None
    assert (told["counts"]["data"], told["counts"]["dead"]) == (4, 0)
    assert not again.log.fs.exists(again.log.path(late))


@pytest.mark.parametrize("state", ["running", "stopped", "incomplete"])
def test_a_run_that_has_not_ended_is_refused(settings: JobSettings, state: str) -> None:
    begun(settings, state, [1])
    with pytest.raises(UserError, match="is not finished; finish it first"):
        RetryJob(settings, RetryFilter(), lambda line: None).retry(no_ray)


def take_over(job: GenerateJob) -> None:
    """Another command takes the lease."""
    number = max(int(path.stem) for path in Path(job.settings.output, "_lease").glob("*.json"))
    Path(job.settings.output, "_lease", f"{number + 1:06d}.json").write_text("{}")


def test_a_command_that_was_taken_over_amends_nothing(settings: JobSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(settings, "finished", [1, 3])
    job = retrying(settings, monkeypatch, take_over)
    told = job.folder.read_json(RUN)
    with pytest.raises(StoppedError, match="another driver took the output over"):
        job.retry(Pools)
    assert job.folder.read_json(RUN) == told
    assert job.log.finished() == {0: "window-000000-today.json"}


def test_a_command_that_is_taken_over_behind_its_last_window_writes_no_counts(
    settings: JobSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(settings, "finished", [1, 3])
    job = retrying(settings, monkeypatch)
    told, amend = job.folder.read_json(RUN), amend_window

    def amend_and_lose(*args: Any) -> Any:
        found = amend(*args)
        take_over(job)
        return found

    monkeypatch.setattr(retry_module, "amend_window", amend_and_lose)
    with pytest.raises(StoppedError, match="another driver took the output over"):
        job.retry(Pools)
    assert job.folder.read_json(RUN) == told


def test_a_run_that_is_begun_anew_as_the_lease_is_taken_is_left_alone(
    settings: JobSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begun(settings, "finished", [1])
    told = job.folder.read_json(RUN)
    assert told is not None
    retried, leased = retrying(settings, monkeypatch), RetryJob._leased

    def begun_anew(self: RetryJob, switch: Any) -> Any:
        job.folder.write_json(RUN, told | {"run": "other"})
        return leased(self, switch)

    monkeypatch.setattr(RetryJob, "_leased", begun_anew)
    with pytest.raises(UserError, match="was begun anew meanwhile"):
        retried.retry(no_ray)


def test_an_answer_without_a_letter_is_refused(settings: JobSettings) -> None:
    job = begun(settings, "finished", [1])
    job.log.begin_session()
    commit(job, "b-0", [1, 2], [])
    marker, files = job.log.newest(0)
    with pytest.raises(StoreError, match="its dead letters changed"):
        amend_window(job.log, 0, marker, 0, np.array([1, 2]))
    assert job.log.newest(0) == (marker, files)


def test_a_file_that_changed_while_records_ran_alone_blames_none(settings: JobSettings) -> None:
    job = GenerateJob(settings, lambda line: None)
    prepared, problems = job.prepare(), iter(["", "input: changed"])
    window = WindowJob(settings, job.log, print, lambda: None, lambda: next(problems))
    window.rounds = lambda run, ahead=None: np.array([0])  # type: ignore[method-assign]
    window._fails_alone = lambda run, row: True  # type: ignore[method-assign]
    run = job._window_run(prepared, Pools(), job.shape(prepared), 0)
    with pytest.raises(StoppedError, match="input: changed"):
        window.run(run)
    assert list(job.log.shards(0)) == []


def test_too_many_windows_are_refused(settings: JobSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "MOST_WINDOWS", 3)
    settings = JobSettings(**vars(settings) | {"window_records": 1})
    with pytest.raises(UserError, match=r"window\.records=1 cuts the input into 4 windows; 3 at most"):
        GenerateJob(settings).prepare()
