"""Faults of actors on a local Ray: what is told, what is tried again, and that nothing goes on for ever."""

import gc
import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pytest
import ray
from ray.data import DataContext

from pipeline.cluster.resources import StageResources
from pipeline.errors import UserError
from pipeline.job.finish import WindowFinisher
from pipeline.job.generate import GenerateJob
from pipeline.job.passes import Passes
from pipeline.job.result import JobResult
from pipeline.job.retry_dead import RetryJob
from pipeline.job.stop import SIGTERM, StopKind, StoppedError
from pipeline.records import Record
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords
from pipeline.storage import read_dead, read_run
from pipeline.storage.commit.lease import Lease
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.commit.replace import RetryFilter
from pipeline.storage.input.read import staged_table
from pipeline.storage.output.run import RunFolder
from pipeline.storage.store.objects import put
from pipeline.telemetry.progress import Listener, Snapshot
from tests import tiny
from tests.job import faulty
from tests.stages import tiny_job, tiny_pools

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> JobSettings:
    """A job over 20 records and a line that is none."""
    settings = tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router, shard_records=32)
    rows = [{"id": f"r{i}", "prompt": tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0]} for i in range(20)]
    folder = Path(settings.input)
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{not json\n")
    return settings


def run(settings: JobSettings, generator: type = GenerateRecords, router: type = RouteRecords) -> JobResult:
    job = GenerateJob(settings, lambda line: None, generator=generator, router=router)
    return job.run(tiny_pools)


def outputs_without_ray(settings: JobSettings) -> dict[str, Any]:
    """What the classes of the stages make of the records, called directly."""
    lines = (Path(settings.input) / "a.jsonl").read_text().splitlines()[:20]
    records = [Record(i, **json.loads(line)) for i, line in enumerate(lines)]
    routed = RouteRecords(settings, tiny.CONTEXT)(staged_table(records, pa.schema([])))
    answered = GenerateRecords(settings, "cpu", 1)(routed)
    return dict(zip(answered["id"].to_pylist(), answered["output"].to_pylist(), strict=True))


def outputs(settings: JobSettings) -> dict[str, Any]:
    table = read_run(settings.output).to_table()
    return dict(zip(table["id"].to_pylist(), table["output"].to_pylist(), strict=True))


def letters(settings: JobSettings) -> list[tuple[str, int]]:
    dead = read_dead(settings.output).to_table()
    return sorted(zip(dead["error_type"].to_pylist(), dead["row"].to_pylist(), strict=True))


def retry(
    settings: JobSettings, generator: type = GenerateRecords, listener: Listener = lambda snapshot: None
) -> tuple[int, int, int]:
    job = RetryJob(settings, RetryFilter(), lambda line: None, generator=generator, listener=listener)
    result = job.run(tiny_pools)
    return result.retried, result.answered, result.dead


@pytest.mark.slow  # `tests/jobs/test_retry_dead.py` retries dead letters too
def test_dead_records_are_tried_again_until_they_are_answered(settings: JobSettings) -> None:
    run(settings, faulty.RefusesSome)
    refused = [("OutOfMemoryError", row) for row in range(0, 20, 3)]
    assert letters(settings) == [("InvalidJson", 20), *refused]
    none = RetryJob(settings, RetryFilter(errors=["NoAnswer"])).run(lambda: pytest.fail("Ray was started"))
    assert none.retried == 0
    assert retry(settings, faulty.RefusesSome) == (7, 0, 8)
    assert letters(settings) == [("InvalidJson", 20), *refused]
    seen: list[Snapshot] = []
    assert retry(settings, listener=seen.append) == (7, 7, 1)
    assert [seen[0].stage, seen[-1].stage] == ["starting Ray", "committed"]
    assert (seen[-1].records, seen[-1].done, seen[-1].counts.data) == (7, 7, 7)
    assert letters(settings) == [("InvalidJson", 20)]
    assert outputs(settings) == outputs_without_ray(settings)
    told = json.loads((Path(settings.output) / "run.json").read_text())
    assert (told["counts"]["data"], told["counts"]["errors"]) == (20, {"InvalidJson": 1})
    assert [again["answered"] for again in told["retries"]] == [0, 7]
    log, out = MarkerStore(settings.output), Path(settings.output)
    assert [path.name for path in (out / "_commits").iterdir()] == [f"window-000000-{told['run']}-002.json"]
    for kind in ("data", "dead"):
        assert sorted(map(str, (out / kind).iterdir())) == sorted(log.committed_files(kind))
    again = GenerateJob(settings, lambda line: None).run(lambda: pytest.fail("Ray was started"))
    assert (again.counts.data, again.counts.dead) == (20, 1)


def test_only_a_finished_run_is_retried(settings: JobSettings) -> None:
    with pytest.raises(UserError, match="is not finished; finish it first"):
        RetryJob(settings, RetryFilter()).run(lambda: pytest.fail("Ray was started"))


def test_an_actor_that_cannot_start_stops_the_job_with_its_reason(settings: JobSettings) -> None:
    with pytest.raises(
        StoppedError, match=r"generate actor could not start: RuntimeError: the driver of the GPU is too old"
    ) as caught:
        run(settings, faulty.RaisesAtStart)
    assert caught.value.reason.kind is StopKind.START_FAILED
    told = json.loads((Path(settings.output) / "run.json").read_text())
    assert told["state"] == "stopped"
    [incident] = told["incidents"]
    assert incident.pop("times") > 0
    message = "the driver of the GPU is too old"
    assert incident == {"stage": "generate", "phase": "start", "error_type": "RuntimeError", "message": message}


@pytest.mark.slow
def test_one_actor_that_cannot_start_is_replaced(settings: JobSettings) -> None:
    result = run(settings, faulty.FailsAtFirst)
    assert (result.ok, result.counts.data) == (True, 20)
    assert any("the GPU is busy" in str(incident) for incident in result.incidents)


@pytest.mark.slow
def test_a_store_that_fails_at_the_end_of_a_window_stops_the_job_in_order(settings: JobSettings) -> None:
    down = ConnectionResetError("the store is down")
    with (
        mock.patch.object(WindowFinisher, "wait", side_effect=down),
        pytest.raises(StoppedError, match="output: ConnectionResetError: the store is down"),
    ):
        run(settings)
    assert json.loads((Path(settings.output) / "run.json").read_text())["state"] == "stopped"
    result = run(settings)
    assert (result.ok, result.generated_tokens) == (True, 0)


@pytest.mark.slow
def test_an_actor_whose_process_dies_as_it_starts_is_not_started_for_ever(settings: JobSettings) -> None:
    with pytest.raises(
        StoppedError, match=r"generate actor could not start: .*its process died 3 times while it started"
    ):
        run(settings, faulty.DiesAtStart)
    assert run(settings).counts.data == 20


@pytest.mark.slow
def test_a_record_that_kills_its_routing_actor_is_found_and_set_aside(settings: JobSettings) -> None:
    result = run(replace(settings, error_budget=0.2), router=faulty.DiesOfOne)
    assert (result.ok, result.counts.data) == (True, 19)
    assert letters(settings) == [("InvalidJson", 20), ("NoAnswer", 7)]


@pytest.mark.slow
def test_an_engine_that_restarts_at_the_end_of_a_pass_leaves_its_place_to_the_next_pass(settings: JobSettings) -> None:
    job = GenerateJob(replace(settings, error_budget=0.2), lambda line: None, generator=faulty.EngineDiesOfOne)
    memory = int(0.6 * ray.cluster_resources()["memory"])
    one_at_a_time = tiny_pools(generate=StageResources(0.25, memory=memory))
    give_up = threading.Timer(300, os.kill, (os.getpid(), signal.SIGTERM))  # the next pass would wait for ever
    give_up.start()
    gc.disable()  # a process that makes little garbage collects none for minutes
    try:
        result = job.run(lambda: one_at_a_time)
    finally:
        give_up.cancel()
        gc.enable()
    assert (result.ok, result.counts.data) == (True, 19)
    assert letters(settings) == [("InvalidJson", 20), ("NoAnswer", 7)]


@pytest.mark.slow
def test_an_engine_that_hangs_is_ended_and_started_again(settings: JobSettings) -> None:
    result = run(replace(settings, hang_seconds=2.0), faulty.HangsOnce)
    assert Path(f"{settings.output}.hung").exists()
    assert (result.ok, result.counts.data) == (True, 20)
    assert outputs(settings) == outputs_without_ray(settings)


@pytest.mark.slow
def test_rows_of_another_file_are_not_kept_when_the_right_one_comes_back(settings: JobSettings) -> None:
    path = Path(settings.input) / "a.jsonl"
    right, time = path.read_text(), path.stat().st_mtime
    job = GenerateJob(settings, lambda line: None)
    job.prepare()
    path.write_text(right.replace("red", "tall"))
    with pytest.raises(StoppedError, match=r"input: changed or removed while it was read: .*a\.jsonl"):
        job.run(tiny_pools)
    assert not MarkerStore(settings.output).has_markers()
    path.write_text(right)
    os.utime(path, (time, time))
    assert run(settings).counts.data == 20
    assert outputs(settings) == outputs_without_ray(settings)


@pytest.mark.slow
def test_a_driver_whose_output_was_taken_over_writes_nothing_more(settings: JobSettings) -> None:
    def wait_late(finisher: WindowFinisher) -> None:
        """Meanwhile another command has discarded the run and begun its own."""
        other = Lease(settings.output, lambda: None, lambda line: None)
        put(other.fs, other._path(99), other._content(0))
        RunFolder(settings.output).write_json("run.json", {"state": "running", "run": "ofanother"})
        wait(finisher)

    wait = WindowFinisher.wait
    taken = pytest.raises(StoppedError, match="another driver took the output over")
    with mock.patch.object(WindowFinisher, "wait", wait_late), taken:
        run(settings)
    told = json.loads((Path(settings.output) / "run.json").read_text())
    assert told == {"state": "running", "run": "ofanother"}


@pytest.mark.slow
def test_settings_of_ray_data_for_other_work_in_the_process_stay(settings: JobSettings) -> None:
    context = DataContext.get_current()
    before = context.max_errored_blocks, context.execution_no_progress_timeout_s, context.enable_progress_bars
    run(settings)
    assert (context.max_errored_blocks, context.execution_no_progress_timeout_s, context.enable_progress_bars) == before
    assert before[0] == 0


@pytest.mark.slow
def test_a_retry_that_is_stopped_keeps_what_it_answered(settings: JobSettings) -> None:
    run(settings, faulty.RefusesSome)
    with mock.patch.object(Passes, "_still_missing", side_effect=StoppedError(SIGTERM)), pytest.raises(StoppedError):
        retry(settings)
    assert letters(settings) == [("InvalidJson", 20)]
    assert outputs(settings) == outputs_without_ray(settings)
    told = json.loads((Path(settings.output) / "run.json").read_text())
    marker = f"window-000000-{told['run']}-001.json"
    assert [path.name for path in (Path(settings.output) / "_commits").iterdir()] == [marker]
    assert told["counts"]["data"] == 20
    assert retry(settings) == (0, 0, 1)


@pytest.mark.slow
def test_all_windows_share_the_engines_and_rows_that_failed_start_them_once_more(settings: JobSettings) -> None:
    settings = replace(settings, window_records=7, shard_records=3, error_budget=0.2)
    result = run(settings, router=faulty.DiesOfOne)
    assert (result.ok, result.counts.data) == (True, 19)
    assert letters(settings) == [("InvalidJson", 20), ("NoAnswer", 7)]
    told = json.loads((Path(settings.output) / "run.json").read_text())
    assert told["timings"]["stages"]["generate start"]["calls"] == 2, "a pass over all windows, and one row by row"
