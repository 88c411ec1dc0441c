"""Faults of actors on a local Ray: what is told, what is tried again, and that nothing goes on for ever."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.job import GenerateJob, JobResult
from pipeline.stages.retry import RetryJob
from pipeline.stages.settings import JobSettings, Pools
from pipeline.stages.stopping import StoppedError
from pipeline.storage import read_dead, read_run
from pipeline.storage.commit import CommitLog
from pipeline.storage.retry import RetryFilter
from tests import tiny
from tests.stages import tiny_job

from . import faulty

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> JobSettings:
    """A job over 20 records and a line that is none, in two windows."""
    settings = tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router, window_records=12, shard_records=6)
    rows = [{"id": f"r{i}", "prompt": tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0]} for i in range(20)]
    folder = Path(settings.input)
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{not json\n")
    return settings


def run(settings: JobSettings, generator: type = GenerateRecords) -> JobResult:
    return GenerateJob(settings, lambda line: None, generator).run(lambda: Pools(threads=1))


def outputs(settings: JobSettings) -> dict[str, Any]:
    table = read_run(settings.output).to_table()
    return dict(zip(table["id"].to_pylist(), table["output"].to_pylist(), strict=True))


def letters(settings: JobSettings) -> list[tuple[str, int]]:
    dead = read_dead(settings.output).to_table()
    return sorted(zip(dead["error_type"].to_pylist(), dead["row"].to_pylist(), strict=True))


def test_dead_records_are_answered_when_they_are_tried_again(settings: JobSettings, tmp_path: Path) -> None:
    whole = replace(settings, output=str(tmp_path / "whole"))
    run(whole)
    run(settings, faulty.RefusesSome)
    refused = [("OutOfMemoryError", row) for row in range(0, 20, 3)]
    assert letters(settings) == [("InvalidJson", 20), *refused]
    none = RetryJob(settings, RetryFilter(errors=["NoAnswer"]), print).retry(lambda: pytest.fail("Ray was started"))
    assert none.retried == 0
    result = RetryJob(settings, RetryFilter(), lambda line: None).retry(lambda: Pools(threads=1))
    assert (result.retried, result.answered, result.dead) == (7, 7, 1)
    assert outputs(settings) == outputs(whole)
    assert letters(settings) == [("InvalidJson", 20)]
    told = json.loads((Path(settings.output) / "run.json").read_text())
    assert (told["counts"]["data"], told["counts"]["errors"]) == (20, {"InvalidJson": 1})
    assert told["retries"][0]["answered"] == 7
    log, out = CommitLog(settings.output), Path(settings.output)
    assert sorted(path.name for path in (out / "_commits").iterdir()) == [
        "window-000000-001.json",
        "window-000001-001.json",
    ]
    for kind in ("data", "dead"):
        assert sorted(map(str, (out / kind).iterdir())) == sorted(log.committed_files(kind))
    again = GenerateJob(settings, lambda line: None).run(lambda: pytest.fail("Ray was started"))
    assert (again.tally.data, again.tally.dead) == (20, 1)


def test_what_dies_again_has_its_new_dead_letter(settings: JobSettings) -> None:
    run(settings, faulty.RefusesSome)
    job = RetryJob(settings, RetryFilter(), lambda line: None)
    job._generator = faulty.RefusesSome
    result = job.retry(lambda: Pools(threads=1))
    assert (result.retried, result.answered, result.dead) == (7, 0, 8)
    assert len(letters(settings)) == 8


def test_only_a_finished_run_is_retried(settings: JobSettings) -> None:
    with pytest.raises(UserError, match="is not finished; finish it first"):
        RetryJob(settings, RetryFilter()).retry(lambda: pytest.fail("Ray was started"))


def test_an_actor_that_cannot_start_stops_the_job_with_its_reason(settings: JobSettings) -> None:
    with pytest.raises(
        StoppedError, match=r"generate, at the start of an actor: RuntimeError: the driver of the GPU is too old"
    ):
        run(settings, faulty.RaisesAtStart)
    assert json.loads((Path(settings.output) / "run.json").read_text())["state"] == "stopped"
    assert run(settings).tally.data == 20


@pytest.mark.slow
def test_an_actor_whose_process_dies_as_it_starts_is_not_started_for_ever(settings: JobSettings) -> None:
    with pytest.raises(StoppedError, match="the process of an actor died 3 times while it started"):
        run(settings, faulty.DiesAtStart)
    assert run(settings).tally.data == 20


def test_windows_after_the_first_are_routed_ahead(settings: JobSettings) -> None:
    """One record a window, so that most windows come to their turn while the one before generates."""
    result = run(replace(settings, window_records=7, shard_records=2))
    assert (result.ok, result.tally.data, result.incidents) == (True, 20, [])
