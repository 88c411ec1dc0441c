"""The whole job on a local Ray, with a tiny random model, over good and bad input."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import evaluate
from pipeline.cluster.resources import Pools, StageResources
from pipeline.engine import Sampling
from pipeline.engine.settings import EngineSettings
from pipeline.errors import UserError
from pipeline.job import generate as job_module
from pipeline.job.finish import WindowFinisher
from pipeline.job.generate import GenerateJob
from pipeline.job.result import JobResult
from pipeline.job.stop import SIGTERM, StopKind, StoppedError
from pipeline.records import DATA, DEAD, PROVENANCE, Record
from pipeline.report import write_report
from pipeline.settings import JobSettings
from pipeline.stages.generate import GenerateRecords
from pipeline.stages.route import RouteRecords
from pipeline.storage import read_dead, read_run
from pipeline.storage.commit.marker_store import MarkerStore
from pipeline.storage.input.read import staged_table
from tests import tiny
from tests.stages import tiny_job, tiny_pools

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


@pytest.fixture
def job_settings(tmp_path: Path, tiny_model: Path, tiny_bank: Path, tiny_router: Path) -> JobSettings:
    return tiny_job(tmp_path, tiny_model, tiny_bank, tiny_router)


def good_rows(count: int) -> list[dict[str, Any]]:
    """Records whose prompts hold the words of one or two adapters."""
    rows = []
    for i in range(count):
        words = tiny.prompts_of(tiny.ADAPTERS[i % 8], 1, seed=i)[0]
        if i % 3 == 0:
            words += " " + tiny.prompts_of(tiny.ADAPTERS[(i + 3) % 8], 1, seed=i)[0]
        rows.append({"id": f"r{i}", "prompt": words, "number": i, "tags": ["a", str(i)]})
    return rows


def write_lines(path: Path, lines: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\n".join(lines) + b"\n")


def run(settings: JobSettings, pools: Pools | None = None) -> JobResult:
    return GenerateJob(settings, log=lambda line: None).run(lambda: pools or tiny_pools())


def answers_without_ray(settings: JobSettings, rows: list[dict[str, Any]]) -> pa.Table:
    """What the stages' own classes make of some rows, called directly."""
    records = [Record(i, row["id"], row["prompt"]) for i, row in enumerate(rows)]
    routed = RouteRecords(settings, tiny.CONTEXT)(staged_table(records, pa.schema([])))
    return GenerateRecords(settings, "cpu", 1)(routed)


def by_id(output: str, column: str = "output") -> dict[str, Any]:
    table = read_run(output).to_table()
    return dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))


def test_good_records_come_out_and_each_bad_one_is_dead_with_its_reason(job_settings: JobSettings) -> None:
    rows = good_rows(12)
    lines = [json.dumps(row).encode() for row in rows]
    long = json.dumps({"id": "long", "prompt": "red1 tall2 " * 400}).encode()
    bad = [b"", b'{"id": "broken", ', b'{"id": "none", "number": 3}', long, lines[2], b'{"prompt": "\xff\xfe"}', b"[1]"]
    write_lines(Path(job_settings.input) / "a.jsonl", [*lines[:6], *bad, *lines[6:]])
    result = run(job_settings)
    assert result.ok
    assert (result.records, result.counts.data, result.counts.dead) == (18, 12, 6)
    table = read_run(job_settings.output).to_table()
    assert table.schema.names == [*DATA.names, "number", "tags", *PROVENANCE.names]
    assert sorted(table["id"].to_pylist()) == sorted(row["id"] for row in rows)
    for row in table.to_pylist():
        source = rows[row["number"]]
        assert (row["id"], row["tags"]) == (source["id"], source["tags"])
        assert sum(row["weights"]) == 1.0
        assert len(row["weights"]) == len(row["adapters"]) > 0
        assert row["finish_reason"] in ("stop", "length")
    dead = read_dead(job_settings.output).to_table()
    assert dead.schema.names == DEAD.names
    assert sorted(zip(dead["stage"].to_pylist(), dead["error_type"].to_pylist(), strict=True)) == [
        ("read", "DuplicateId"),
        ("read", "InvalidJson"),
        ("read", "InvalidUtf8"),
        ("read", "MissingPrompt"),
        ("read", "NotAnObject"),
        ("route", "PromptTooLong"),
    ]
    assert result.counts.errors == dict.fromkeys(dead["error_type"].to_pylist(), 1)
    records = dict(zip(dead["error_type"].to_pylist(), dead["record"].to_pylist(), strict=True))
    assert json.loads(records["DuplicateId"])["prompt"] == rows[2]["prompt"]
    assert records["InvalidJson"] == '{"id": "broken", '


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "sampled"])
def test_output_does_not_depend_on_batches_actors_windows_or_input_order(
    job_settings: JobSettings, tmp_path: Path, temperature: float
) -> None:
    rows = good_rows(40)
    lines = [json.dumps(row).encode() for row in rows]
    write_lines(tmp_path / "other" / "b.jsonl", lines[:-17:-1])
    write_lines(tmp_path / "other" / "a.jsonl", lines[:24])
    settings = replace(
        job_settings,
        sampling=Sampling(max_new_tokens=8, temperature=temperature),
        input=str(tmp_path / "other"),
        engine=EngineSettings(batch_size=3),
        shard_records=7,
        window_records=23,
    )
    run(
        settings,
        tiny_pools(route=StageResources(0.25, max_actors=2), generate=StageResources(0.25, min_actors=2, max_actors=2)),
    )
    expected = answers_without_ray(replace(settings, engine=EngineSettings(batch_size=16)), rows)
    for column in ("output", "mixture"):
        assert by_id(settings.output, column) == dict(
            zip((row["id"] for row in rows), expected[column].to_pylist(), strict=True)
        )
    # A finished run does no generation, and a changed one is refused.
    again = GenerateJob(settings, log=lambda line: None).run(lambda: pytest.fail("Ray was started"))
    assert (again.counts.data, again.generated_tokens) == (40, 0)
    changed = replace(settings, sampling=Sampling(max_new_tokens=9))
    with pytest.raises(UserError, match=r"generation.max_new_tokens \(was 8, is 9\)"):
        GenerateJob(changed).prepare()


@pytest.mark.slow
def test_a_new_run_replaces_an_earlier_one_once_ray_has_started(job_settings: JobSettings) -> None:
    path = Path(job_settings.input) / "a.jsonl"
    write_lines(path, [json.dumps(row).encode() for row in good_rows(6)])
    run(job_settings)
    path.write_text(path.read_text() + '{"prompt": "red1"}\n')
    with pytest.raises(UserError, match=r"input \(changed, added or removed: .*a.jsonl\)"):
        GenerateJob(job_settings).prepare()
    finished = (Path(job_settings.output) / "run.json").read_bytes()
    kept = Path(job_settings.output) / "data" / "mine.parquet"
    kept.write_bytes(b"not of a run")
    fresh = GenerateJob(job_settings, log=lambda line: None)
    fresh.prepare(new_run=True)
    assert (Path(job_settings.output) / "run.json").read_bytes() == finished, "discarded before Ray has started"
    assert fresh.run(tiny_pools).counts.data == 7
    assert kept.read_bytes() == b"not of a run"
    # Killed while it discards, a job does not take what is left for an earlier run of its own.
    killed = GenerateJob(job_settings, log=lambda line: None)
    killed.prepare(new_run=True)
    with mock.patch.object(job_module, "discard_run", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        killed.run(tiny_pools)
    with pytest.raises(UserError, match=r"holds commit markers but no run\.json"):
        GenerateJob(job_settings).prepare()


def test_a_run_that_another_driver_began_meanwhile_is_compared_too(job_settings: JobSettings) -> None:
    write_lines(Path(job_settings.input) / "a.jsonl", [json.dumps(row).encode() for row in good_rows(3)])
    first, second = (GenerateJob(job_settings, log=lambda line: None) for _ in range(2))
    prepared = first.prepare()
    second.prepare()
    guard = prepared.guard | {"seed": 99}
    first.folder.write_json("run.json", {"guard": guard, "schemas": {}, "run": "abcd"})
    with pytest.raises(UserError, match=r"differs in seed \(was 99, is 0\)"):
        second.run(tiny_pools)
    assert not MarkerStore(job_settings.output).has_markers()


@pytest.mark.slow
def test_a_half_done_run_is_finished_without_doing_its_work_again(job_settings: JobSettings, tmp_path: Path) -> None:
    write_lines(Path(job_settings.input) / "a.jsonl", [json.dumps(row).encode() for row in good_rows(40)])
    settings = replace(job_settings, shard_records=4, window_records=33, file_bytes=0)
    run(settings)
    expected = by_id(settings.output)
    settings, start = replace(settings, output=str(tmp_path / "half")), WindowFinisher.start

    reached: set[int] = set()

    def finish_the_first_only(finisher: WindowFinisher, window: int) -> None:
        reached.add(window)
        if window == 0:
            start(finisher, window)
        if len(reached) == 2:
            finisher.wait()
            raise StoppedError(SIGTERM)

    with mock.patch.object(WindowFinisher, "start", finish_the_first_only), pytest.raises(StoppedError):
        run(settings)
    out = Path(settings.output)
    assert json.loads((out / "run.json").read_text())["state"] == "stopped"
    # What a kill leaves: no window marker of the second window, a lost shard marker, its files not cleaned up.
    lost, *kept = sorted((out / "_commits").glob("w000001-*.json"))
    lost_rows = pq.read_metadata(out / json.loads(lost.read_text())["data"]).num_rows
    lost.unlink()
    before = {path.stem: path.read_bytes() for path in map(Path, MarkerStore(str(out)).committed_files("data"))}
    assert len(by_id(settings.output)) == 40 - lost_rows
    result = run(settings)
    assert result.ok
    assert by_id(settings.output) == expected
    after = {path.stem: path.read_bytes() for path in (out / "data").iterdir()}
    assert kept
    assert before.items() < after.items(), "committed files stay as they are"
    assert sorted(after) == sorted(Path(f).stem for f in MarkerStore(str(out)).committed_files("data")), (
        "the rest is swept"
    )
    assert read_run(settings.output).count_rows() == 40
    assert 0 < result.generated_tokens < result.counts.completion_tokens


@pytest.mark.slow
def test_a_job_over_its_error_budget_stops_and_goes_on_with_a_larger_one(job_settings: JobSettings) -> None:
    bad = [b"{not json" for _ in range(4)]
    lines = [json.dumps(row).encode() for row in good_rows(24)]
    write_lines(Path(job_settings.input) / "a.jsonl", [*bad, *lines])
    settings = replace(job_settings, window_records=14, max_errors=3, sampling=Sampling(max_new_tokens=1))
    with pytest.raises(StoppedError, match=r"4 dead letters, over errors.max=3: 4 InvalidJson") as caught:
        run(settings)
    assert caught.value.reason.kind is StopKind.BUDGET
    assert json.loads((Path(settings.output) / "run.json").read_text())["state"] == "stopped"
    assert run(replace(settings, max_errors=4)).counts.data == 24
    assert len(by_id(settings.output)) == 24


@pytest.mark.slow
def test_formats_renamed_columns_and_passed_through_ones(job_settings: JobSettings, tmp_path: Path) -> None:
    rows = [
        {"key": f"{i}", "text": r["prompt"], "id": f"own {i}", "label": f"0{i}"} for i, r in enumerate(good_rows(9))
    ]
    folder = tmp_path / "mixed" / "day=7"
    folder.mkdir(parents=True)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows[:3]).encode()))
    (folder / "b.csv").write_text("key,text,id,label\n" + "".join(",".join(r.values()) + "\n" for r in rows[3:6]))
    pq.write_table(pa.Table.from_pylist(rows[6:]), folder / "c.parquet")
    (folder / "notes.txt").write_text("not a record, and not matched by the glob")
    columns = replace(job_settings.columns, id="key", prompt="text")
    settings = replace(job_settings, input=str(folder / "[abc].*"), columns=columns, keep_prompt=True)
    assert run(settings).ok
    table = read_run(settings.output).to_table().sort_by("id")
    assert table["id"].to_pylist() == [r["key"] for r in rows]
    # The input's own column `id` is passed through; the name is taken, so it gets another.
    assert table["input_id"].to_pylist() == [r["id"] for r in rows]
    assert table["label"].to_pylist() == [r["label"] for r in rows]
    assert (table["day"].to_pylist(), table["day"].type) == ([7] * 9, pa.int32())
    assert table["prompt"].to_pylist() == [r["text"] for r in rows]


@pytest.mark.slow
def test_a_run_is_evaluated_and_reported(
    job_settings: JobSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = good_rows(8)
    outputs = answers_without_ray(job_settings, rows)["output"].to_pylist()
    # Answers that are right for the records of one task and wrong for those of the other.
    labelled = [row | {"task": "ab"[i % 2], "answer": outputs[i] + "x" * (i % 2)} for i, row in enumerate(rows)]
    write_lines(tmp_path / "labelled" / "a.jsonl", [json.dumps(row).encode() for row in [*labelled, {"id": "none"}]])
    settings = replace(job_settings, input=str(tmp_path / "labelled"), output=str(tmp_path / "out2"), keep_prompt=True)
    run(settings)
    assert evaluate.main(["--run", settings.output, "--json", str(tmp_path / "figures.json")]) == 0
    assert "50.0%" in capsys.readouterr().out.splitlines()[-1]
    [figures] = json.loads((tmp_path / "figures.json").read_text())["runs"].values()
    assert {task: group["accuracy"] for task, group in figures["groups"].items()} == {"a": 1.0, "b": 0.0}
    html = Path(write_report(settings.output)).read_text()
    for text in ("<svg", "MissingPrompt", rows[0]["prompt"].split()[0]):
        assert text in html
    assert "http://" not in html.replace("http://www.w3.org", "")
